"""The rehearsal: find out by running a model what it allows, before the first mask is served.

May its batches mix masks? May `1 / alpha` be applied to the output of its layers? Names of classes do not tell. A
module may get the rows in another order, or other code may use its weight (`F.linear(x, module.weight)`). So three
images run once in the plain way and once in each fast way, with weights that differ from theta everywhere. A way whose
embeddings differ from the plain ones is not used. In the mixed run all modules hold NaN while their own forward does
not run, so that code that reads their weights then gives itself away.
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
from smn_core.engine.compact import make_compact
from smn_core.engine.mixed.mixed import Mixed, Unsplittable
from smn_core.engine.sample import half_mask
from smn_core.engine.sites import Site, Weights, scale_behind
from smn_core.engine.span import Span
from smn_core.engine.theta import Theta, views_of
from smn_core.engine.wearable import WearableMask

LOG = logging.getLogger("smn.engine")
# Relative distance of embeddings: another order of summation stays far below, another weight far above.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


@torch.inference_mode()
def rehearse(backbone: Backbone, theta: Theta, mixed: Mixed) -> bool:
    """Whether one forward may mix masks.

    Settles `scalable`, `calls` and `out_elements` of the sites, and whether `mixed` uses the kernels. Logs why a way is
    not used. The model wears the root afterwards.
    """
    model, sites = backbone.model, theta.sites
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, *backbone.preprocess["input_size"], generator=random).to(backbone.device, backbone.dtype)
    compact = make_compact(half_mask(backbone.layout), backbone.device, theta.kernel_layout)
    other = torch.zeros_like(theta.flat)
    applier_for(theta.flat, backbone.layout, threads=1).write(compact, other)
    weights = views_of(other, backbone.layout)
    mask = WearableMask("", compact, {name: tensor * 1.25 for name, tensor in theta.state.items()})
    try:
        root = _count_calls(model, sites, x)
        theta.show(weights, mask.state)
        masked = model(x)
        if not _can_scale_behind(model, x, sites, weights, masked):
            LOG.warning("every mask takes a slot: 1 / alpha cannot move behind the products of this model")
            for site in sites:
                site.scalable = False
        reason = _why_unsplittable(model, x, sites, mixed, mask, weights, root, masked)
        if reason and mixed.kernels is not None:
            LOG.warning("mixed batches run without Triton's kernels: %s", reason)
            mixed.kernels = None
            reason = _why_unsplittable(model, x, sites, mixed, mask, weights, root, masked)
        if reason:
            LOG.warning("batches that mix masks run segment by segment: %s", reason)
        return not reason
    finally:
        scale_behind(sites, None)
        theta.show(theta.root, {})


def _count_calls(model: nn.Module, sites: Sequence[Site], x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """Run a plain forward and count what it calls. A site whose own forward it does not call is not scalable."""

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


def _can_scale_behind(
    model: nn.Module, x: Tensor, sites: Sequence[Site], weights: Weights, expected: Float[Tensor, "n d"]
) -> bool:
    """Whether the embeddings stay when weights are divided by a scale and outputs multiplied by it.

    The scales are 2 and 1/2 in turn, for all scalable weights and biases at once; the weights are put back.
    """
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


def _why_unsplittable(
    model: nn.Module,
    x: Tensor,
    sites: Sequence[Site],
    mixed: Mixed,
    mask: WearableMask,
    weights: Weights,
    root: Float[Tensor, "n d"],
    masked: Float[Tensor, "n d"],
) -> str:
    """Why batches cannot mix masks; empty if they can.

    Args:
        mask, weights: a mask and where its weights lie.
        root, masked: embeddings of `x` through the root and through the mask.
    """
    if unseen := [site for site in sites if site.calls == 0]:
        return f"the weights of a {type(unseen[0].module).__name__} are used outside of it"
    rest = mixed.rest
    mixed.rest = _fill_with_nan(rest[0]), _fill_with_nan(rest[1])
    # Whatever moves images about moves the first or the last.
    first = [Span(0, 1, mask, weights), Span(1, 3, None, rest[0])]
    last = [Span(0, 2, None, rest[0]), Span(2, 3, mask, None if mixed.scratch.available else weights)]
    try:
        found = torch.cat([mixed.run(model, x, spans) for spans in (first, last)])
    except Unsplittable as error:
        return str(error)
    except Exception as error:  # models refuse what they do not expect in many ways
        return f"{type(error).__name__}: {error}"
    finally:
        mixed.rest = rest
    expected = torch.cat([masked[:1], root[1:], root[:2], masked[2:]])
    return "" if _agree(found, expected) else "its images are not apart in some module"


def _fill_with_nan(tensors: Weights) -> Weights:
    """NaN in the shape of every tensor, in the memory of one number."""
    return {
        name: nn.Parameter(torch.full((1,), torch.nan).to(tensor).expand(tensor.shape), requires_grad=False)
        for name, tensor in tensors.items()
    }


def _agree(found: Float[Tensor, "n d"], expected: Float[Tensor, "n d"]) -> bool:
    """Whether embeddings are equal up to rounding; False for NaN."""
    distance = torch.linalg.vector_norm((found - expected).float(), dim=-1)
    size = torch.linalg.vector_norm(expected.float(), dim=-1)
    return bool((distance <= TOLERANCE[found.dtype] * size).all())
