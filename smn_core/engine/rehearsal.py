"""What a model allows, found out by running it: may its batches mix masks, may `1 / alpha` move behind its products?

A module may get the rows in another order, or its weight be used behind its back (`F.linear(x, module.weight)`). So
three images run once in the plain way and once in each fast way, with weights that differ from theta everywhere; a way
that does not give the plain embeddings is not used. In the mixed run the modules' tables hold NaN outside of their
forward, so that whoever looks there gives itself away.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smn_core.backbone import Backbone
from smn_core.engine.apply import applier_for
from smn_core.engine.compact import resident_of
from smn_core.engine.mixed.mixed import Mixed, Part, Unsplittable
from smn_core.engine.patch import views
from smn_core.engine.sample import half_mask
from smn_core.engine.sites import Site, Weights, scale_behind
from smn_core.engine.slots import Prepared, Slots

LOG = logging.getLogger("smn.engine")
# Relative distance of embeddings: another order of summation stays far below, another weight far above.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


@torch.inference_mode()
def rehearse(backbone: Backbone, slots: Slots, mixed: Mixed) -> bool:
    """Whether one forward may mix masks. Settles `scalable`, `calls` and `out_elements` of the sites; ends on the root.

    A way that is not used is logged with its reason.
    """
    model, sites = backbone.model, slots.sites
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, *backbone.preprocess["input_size"], generator=random).to(backbone.device, backbone.dtype)
    bits = resident_of(half_mask(backbone.layout), backbone.device, slots.plan)
    other = torch.zeros_like(slots.theta)
    applier_for(slots.theta, backbone.layout, threads=1).write(bits, other)
    weights = views(other, backbone.layout)
    state = {name: tensor * 1.25 for name, tensor in slots.root_state.items()}
    mask = Prepared("", bits, state)
    try:
        root = _count(model, sites, x)
        slots.show(weights, state)
        worn = model(x)
        if not _scales(model, x, sites, weights, worn):
            LOG.warning("every mask takes a slot: 1 / alpha cannot move behind the products of this model")
            for site in sites:
                site.scalable = False
        reason = _cannot_split(model, x, sites, mixed, mask, weights, root, worn)
        if reason and mixed.kernels is not None:
            LOG.warning("mixed batches run without Triton's kernels: %s", reason)
            mixed.kernels = None
            reason = _cannot_split(model, x, sites, mixed, mask, weights, root, worn)
        if reason:
            LOG.warning("batches that mix masks run segment by segment: %s", reason)
        return not reason
    finally:
        scale_behind(sites, None)
        slots.use(None)


def _count(model: nn.Module, sites: Sequence[Site], x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """A plain forward; a module whose own forward it does not call is not scalable."""

    def counted(site: Site, y: Tensor) -> Tensor:
        z = site.original(y)
        site.calls += 1
        site.out_elements = z.numel() // len(x)
        return z

    for site in sites:
        site.replace(partial(counted, site))
    try:
        return model(x)
    finally:
        for site in sites:
            site.restore()
            site.scalable = site.scalable and site.calls > 0


def _scales(
    model: nn.Module, x: Tensor, sites: Sequence[Site], weights: Weights, expected: Float[Tensor, "n d"]
) -> bool:
    """Run with scalable weights and biases halved and doubled in turn, the inverse applied behind; puts them back."""
    names = {
        index: site.parameters[own]
        for site in sites
        if site.scalable
        for own, index in (("weight", site.weight), ("bias", site.bias))
        if index is not None
    }
    scales = [1.0] * len(weights)
    for number, (index, name) in enumerate(names.items()):
        scales[index] = (2.0, 0.5)[number % 2]
        weights[name].data.div_(scales[index])
    scale_behind(sites, scales)
    try:
        return _agree(model(x), expected)
    finally:
        scale_behind(sites, None)
        for index, name in names.items():
            weights[name].data.mul_(scales[index])


def _cannot_split(
    model: nn.Module,
    x: Tensor,
    sites: Sequence[Site],
    mixed: Mixed,
    mask: Prepared,
    weights: Weights,
    root: Float[Tensor, "n d"],
    worn: Float[Tensor, "n d"],
) -> str:
    """Why batches cannot mix masks; empty if they can."""
    if unseen := [site for site in sites if site.calls == 0]:
        return f"the weights of a {type(unseen[0].module).__name__} are used outside of it"
    mine = mixed.rest
    mixed.rest = _nans(mine[0]), _nans(mine[1])
    # Whatever moves images about moves the first or the last.
    first = [Part(0, 1, mask, weights), Part(1, 3, None, mine[0])]
    last = [Part(0, 2, None, mine[0]), Part(2, 3, mask, weights)]
    try:
        found = torch.cat([mixed.run(model, x, parts) for parts in (first, last)])
    except Unsplittable as error:
        return str(error)
    except Exception as error:  # models refuse what they do not expect in many ways
        return f"{type(error).__name__}: {error}"
    finally:
        mixed.rest = mine
    expected = torch.cat([worn[:1], root[1:], root[:2], worn[2:]])
    return "" if _agree(found, expected) else "its images are not apart in some module"


def _nans(tensors: Weights) -> Weights:
    """NaN in the shape of every tensor, in the memory of one number."""
    return {
        name: nn.Parameter(torch.full((1,), torch.nan).to(tensor).expand(tensor.shape), requires_grad=False)
        for name, tensor in tensors.items()
    }


def _agree(found: Float[Tensor, "n d"], expected: Float[Tensor, "n d"]) -> bool:
    """False for NaN."""
    distance = torch.linalg.vector_norm((found - expected).float(), dim=-1)
    size = torch.linalg.vector_norm(expected.float(), dim=-1)
    return bool((distance <= TOLERANCE[found.dtype] * size).all())
