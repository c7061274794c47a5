"""theta: the maskable weights of a backbone in one flat array that nobody writes, and what is made of them once.

The backbone without a mask is called the root. Its parameters are views of theta.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor, nn

from smn_core.backbone import Backbone
from smn_core.engine.apply import Applier, applier_for
from smn_core.engine.compact import CompactMask
from smn_core.engine.forwards.convolution import find_folding
from smn_core.engine.kernelmask import KernelLayout
from smn_core.engine.kernels.choice import load_kernels
from smn_core.engine.sites import Weights, sites_of
from smn_core.layout import Layout


class Theta:
    """The weights of one backbone, whose model belongs to this object from here on.

    Args:
        threads: threads that write theta' of a mask on the CPU.
        kernels: use Triton's kernels, if they work here.
        fixed: slots keep copies of normalisation statistics at fixed addresses.

    Attributes:
        flat: the array; each tensor begins at its `first_element` of the layout.
        sites: the modules of the model that a mask changes.
        views: the root's parameters, by name.
        folding: how normalisations are folded into weights; None where they are not.
        root: what the model wears without a mask: `views`, or a folded copy of them.
        state: the root's normalisation statistics, by name.
        flat_state: the same statistics in one array, where `fixed`.
        kernels: None where there are none.
        applier: writes theta' of a mask.
    """

    def __init__(self, backbone: Backbone, threads: int, kernels: bool = False, fixed: bool = False) -> None:
        self.layout: Layout = backbone.layout
        self.sites = sites_of(backbone.model, backbone.layout)
        self.flat = _flatten(backbone)
        self.views: Weights = views_of(self.flat, backbone.layout)
        if backbone.theta is not None:
            backbone.theta.move(self.views)  # or else it would keep the memory of the model's own weights
        self.state: Weights = {
            name: buffer for name, buffer in backbone.model.named_buffers() if name in backbone.layout.buffers
        }
        self.flat_state = FlatState(self.state) if fixed else None
        self.kernels = load_kernels(self.flat, backbone.layout) if kernels else None
        self.applier: Applier = (
            self.kernels.applier if self.kernels is not None else applier_for(self.flat, backbone.layout, threads)
        )
        self.folding = find_folding(backbone.model)
        self._scratch: tuple[Tensor, Weights] | None = None
        self.root: Weights = self.views
        if self.folding is not None:
            array = self.flat.clone()
            self.root = self.views_in(array)
            self.folding.fold(self.root, self.state)
            if self.folding.packs:
                self._scratch = array, self.root
                self.root = self.folding.pack(self.root)
        self.show(self.root, {})

    @property
    def root_nbytes(self) -> int:
        """Bytes of the root's folded copy, and of the array where weights are folded before they are packed."""
        return (int(self.folding is not None) + int(self._scratch is not None)) * self.flat.nbytes

    def write(self, mask: CompactMask, state: Weights, array: Float[Tensor, "n_elements"], views: Weights) -> Weights:
        """Write theta' of a mask into an array, folded where weights are; return the parameters, by name.

        Args:
            state: the statistics of the mask; those that it lacks are the root's.
            array, views: an array and the parameters in it; where weights are packed the array is not used.
        """
        array, inside = self._scratch if self._scratch is not None else (array, views)
        self.applier.write(mask, array)
        if self.folding is not None:
            self.folding.fold(inside, {**self.state, **state})
        return inside if self._scratch is None or self.folding is None else self.folding.pack(inside)

    @property
    def packs(self) -> bool:
        return self._scratch is not None

    def views_in(self, flat: Float[Tensor, "n_elements"]) -> Weights:
        """The parameters in an array for weights that will be folded, where they are: with memory for their biases."""
        views = views_of(flat, self.layout)
        return views if self.folding is None else {**views, **self.folding.make_biases(flat)}

    @property
    def device(self) -> torch.device:
        return self.flat.device

    @property
    def kernel_layout(self) -> KernelLayout | None:
        """What masks are prepared for, where there are kernels."""
        return self.kernels.kernel_layout if self.kernels is not None else None

    def show(self, weights: Weights, state: Weights) -> None:
        """Make the model find these weights, and these statistics; those that `state` lacks are the root's.

        This sets some hundred dictionary entries in the modules that own the tensors; nothing is copied.
        """
        state = {**self.state, **state}
        for site in self.sites:
            site.show(weights, state)
        if self.folding is not None:
            self.folding.show(weights)


class FlatState:
    """Normalisation statistics in one array, so that those of a mask come to a slot by one copy."""

    def __init__(self, root: Weights) -> None:
        self._shapes = {name: tensor.shape for name, tensor in root.items()}
        like = next(iter(root.values()), torch.zeros(0))
        self.root = torch.cat([like.new_zeros(0), *(tensor.detach().flatten() for tensor in root.values())])

    def views_of(self, flat: Float[Tensor, "n"]) -> Weights:
        """The statistics of an array, by name."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), flat.split(sizes), strict=True) if sizes else ()
        return {name: part.view(shape) for (name, shape), part in parts}

    def flatten(self, state: Mapping[str, Float32[ndarray, "..."]]) -> Float[Tensor, "n"]:
        """The array of a mask: its own statistics, the root's where it has none."""
        flat = self.root.clone()
        for name, view in self.views_of(flat).items():
            if name in state:
                view.copy_(torch.from_numpy(state[name].copy()))
        return flat


def views_of(flat: Float[Tensor, "n_elements"], layout: Layout) -> dict[str, Tensor]:
    """The parameters in a flat array of weights, by name."""
    return {t.name: nn.Parameter(flat[t.elements].view(t.shape), requires_grad=False) for t in layout}


def _flatten(backbone: Backbone) -> Float[Tensor, "n_elements"]:
    """Copy the maskable weights into one flat array, each tensor at its `first_element`."""
    theta = torch.zeros(backbone.layout.n_elements, dtype=backbone.dtype, device=backbone.device)
    parameters = dict(backbone.model.named_parameters())
    for tensor in backbone.layout:
        theta[tensor.elements] = parameters[tensor.name].detach().flatten()
    return theta
