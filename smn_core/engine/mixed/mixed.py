"""One forward for a batch that mixes masks.

Modules without masked weights or per-task state run on the whole batch. Each of the others gets its input for the whole
batch too and runs it by segment, or, a linear layer, through the shared base (correction.py). The rows of the batch
must be equal blocks of rows of every such input, in order: checked in part at every call, and once, wholly, by
rehearsal.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor, nn

from smn_core.engine.costs import Costs, base_pays
from smn_core.engine.device.graphs import MAX_IMAGES
from smn_core.engine.kernels.choice import Kernels
from smn_core.engine.kernels.table import Table
from smn_core.engine.mixed.correction import Corrector
from smn_core.engine.mixed.lists import Lists, Rows
from smn_core.engine.patch import Patch
from smn_core.engine.sites import Site, Weights, multiply
from smn_core.engine.slots import Prepared
from smn_core.layout import Layout

if TYPE_CHECKING:
    from smn_core.engine.kernels.linear import Layer


class Unsplittable(Exception):
    """The input of a module is not the rows of the batch, which must then run one segment after the other."""


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of a batch through `weights`: the root's (`mask` None), or a mask's; None if in the shared array."""

    start: int
    stop: int
    mask: Prepared | None
    weights: Weights | None


class Mixed:
    """Runs batches of parts. Owned by one thread.

    `rest` is what the modules' own tables hold outside their forward: the root's weights and state. With `kernels`,
    linear layers run the whole batch in one launch, whatever the masks (kernels/linear.py).
    """

    def __init__(
        self,
        sites: Sequence[Site],
        layout: Layout,
        root: tuple[Weights, Weights],
        patch: Patch,
        corrector: Corrector,
        costs: Costs | None,
        kernels: Kernels | None = None,
    ) -> None:
        self._sites, self._layout, self._patch, self._corrector = sites, layout, patch, corrector
        self._root_weights, self._root_state = root
        self._costs = costs
        self.rest = root
        self.kernels = kernels
        self._layers: dict[int, Layer] = {}
        self._tables: dict[int, Table] = {}
        self._parts: Sequence[Part] = ()
        self._lists = Lists((), len(layout.tensors))
        self._n_rows = 0

    @property
    def all_linear(self) -> bool:
        """Whether the kernels run all that differs by mask: the masks need no slots, any batch the same launches."""
        return self.kernels is not None and all(site.is_linear for site in self._sites)

    def run(self, model: nn.Module, x: Float[Tensor, "n 3 h w"], parts: Sequence[Part]) -> Float[Tensor, "n d"]:
        """`z[p.start:p.stop] = model(x[p.start:p.stop])` through the weights of every part p.

        Raises:
            Unsplittable: it cannot be done in one forward.
        """
        self.take(parts, len(x))
        return self.forward(model, x)

    def take(self, parts: Sequence[Part], n_rows: int) -> None:
        """Take the parts of the next batch of `n_rows`; rows behind the last part only fill it up."""
        self._parts, self._n_rows = parts, n_rows
        if self.kernels is not None:
            wholes = [(part.start, part.mask.bits.whole if part.mask is not None else None) for part in parts]
            self._table.fill([*wholes, (parts[-1].stop, None)], n_rows)
        else:
            rows = [Rows(part.start, part.stop, part.mask.bits if part.mask is not None else None) for part in parts]
            self._lists = Lists(rows, len(self._layout.tensors))

    def forward(self, model: nn.Module, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """`run`, for the parts that were taken."""
        if any(part.weights is None for part in self._parts):
            self._patch.clean()
        try:
            for site in self._sites:
                site.show(*self.rest)
                site.replace(partial(self._forward, site))
            return model(x)
        finally:
            for site in self._sites:
                site.restore()

    def _forward(self, site: Site, x: Tensor) -> Tensor:
        block, rest = divmod(x.shape[0], self._n_rows)
        if rest:
            raise Unsplittable(f"a {type(site.module).__name__} gets {x.shape[0]} rows for {self._n_rows} images")
        if self.kernels is not None and site.is_linear:
            return self._in_one_launch(self.kernels, site, x)
        try:
            if site.is_linear:
                return self._linear(site, x)
            parts = self._parts_of(site)
            if len(parts) == 1 and parts[0].mask is None:
                return self._segment(site, x, parts[0])
            return torch.cat([self._segment(site, x[p.start * block : p.stop * block], p) for p in parts])
        finally:
            site.show(*self.rest)

    @property
    def _table(self) -> Table:
        """One for batches as large as graphs are captured for, which must stay where it is, others for larger ones."""
        capacity = 1 << max(MAX_IMAGES - 1, self._n_rows - 1).bit_length()
        if capacity not in self._tables:
            self._tables[capacity] = Table(capacity, self._patch.device)
        return self._tables[capacity]

    def _in_one_launch(self, kernels: Kernels, site: Site, x: Float[Tensor, "*r i"]) -> Float[Tensor, "*r o"]:
        """A linear layer for all parts."""
        assert site.weight is not None
        if site.weight not in self._layers:
            weight, bias = self._root(site)
            self._layers[site.weight] = kernels.layer(weight, bias, site.weight, -1 if site.bias is None else site.bias)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        block = rows.shape[0] // self._n_rows
        out = kernels.linear(rows, self._layers[site.weight], kernels.plan, self._table, block)
        return out.view(*x.shape[:-1], out.shape[-1])

    def _parts_of(self, site: Site) -> list[Part]:
        """The parts as a module sees them: a mask that changes nothing here is the root, equal neighbours are one."""
        found: list[Part] = []
        for part in self._parts:
            mask, weights = part.mask, part.weights
            if mask is not None and _is_neutral(site, mask):
                mask, weights = None, self._root_weights
            if found and found[-1].mask is mask:
                found[-1] = Part(found[-1].start, part.stop, mask, weights)
            else:
                found.append(Part(part.start, part.stop, mask, weights))
        return found

    def _segment(self, site: Site, x: Tensor, part: Part) -> Tensor:
        """One part through the module's own forward."""
        mask, state = part.mask, self._root_state
        if mask is not None and mask.state:
            state = {**state, **mask.state}
        if part.weights is not None:
            site.show(part.weights, state)
            return site.original(x)
        assert mask is not None
        with self._patch.holding(mask.bits, site.tensors, mask.moved):
            site.show(self._patch.views, state)
            if site.scalable and (scales := self._scales(site, mask)) != (1.0, 1.0):
                return site.scaled(x, site.module.weight, site.module.bias, *scales)  # type: ignore[arg-type]
            return site.original(x)

    def _linear(self, site: Site, x: Float[Tensor, "*r i"]) -> Float[Tensor, "*r o"]:
        """Every part of a linear layer, written into one output."""
        assert site.weight is not None
        n_out, n_in = self._layout.tensors[site.weight].shape
        rows = x.reshape(-1, n_in).contiguous()
        block = rows.shape[0] // self._n_rows
        out = rows.new_empty(rows.shape[0], n_out)
        neutral = self._lists.neutral(site.tensors)
        shared = (neutral | self._shared(site, block)).tolist()
        for together, run in groupby(range(len(self._parts)), shared.__getitem__):
            numbers = list(run)
            first, behind = numbers[0], numbers[-1] + 1
            if together and (behind - first > 1 or neutral[first]):
                where = slice(self._parts[first].start * block, self._parts[behind - 1].stop * block)
                weight, bias = self._root(site)
                if neutral[first:behind].all():
                    multiply(out[where], rows[where], weight, bias)
                    continue
                torch.mm(rows[where], weight.t(), out=out[where])
                own_bias = bias if site.bias is None else site.bias
                which = slice(first, behind)
                self._corrector.correct(out[where], rows[where], self._lists, site.weight, own_bias, which, block)
                continue
            for part in self._parts[first:behind]:
                where = slice(part.start * block, part.stop * block)
                self._product(site, rows[where], out[where], part)
        return out.view(*x.shape[:-1], n_out)

    def _shared(self, site: Site, block: int) -> Bool[ndarray, "p"]:
        """The parts that are cheaper as a correction of the root's product, where they can be."""
        assert site.weight is not None
        if self._costs is None or not self._corrector.available:
            return np.zeros(len(self._parts), bool)
        listed = np.array([_is_listed(site, part) for part in self._parts])
        n_out, n_in = self._layout.tensors[site.weight].shape
        n_rows = (self._lists.edges[:, 1] - self._lists.edges[:, 0]) * block
        return listed & base_pays(self._costs, n_rows, n_out * n_in, n_out, self._lists.lengths(site.weight))

    def _product(self, site: Site, x: Tensor, out: Tensor, part: Part) -> None:
        """`out = x @ (W * on / alpha).T + b` of one mask."""
        mask = part.mask
        assert mask is not None
        if part.weights is not None:
            site.show(part.weights, self._root_state)
            multiply(out, x, site.module.weight, site.module.bias)  # type: ignore[arg-type]
            return
        with self._patch.holding(mask.bits, site.tensors, mask.moved):
            site.show(self._patch.views, self._root_state)
            multiply(out, x, site.module.weight, site.module.bias, *self._scales(site, mask))  # type: ignore[arg-type]

    def _root(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a linear layer as the root has them, whether maskable or not."""
        weight, bias = (site.parameters.get(own) for own in ("weight", "bias"))
        assert weight is not None
        return self._root_weights[weight], site.module._parameters.get("bias") if bias is None else self._root_weights[
            bias
        ]

    @staticmethod
    def _scales(site: Site, mask: Prepared) -> tuple[float, float]:
        """What is applied behind the product with the weight, and to the bias, of a mask in the shared array."""
        return tuple(  # type: ignore[return-value]
            float(mask.bits.scales[t]) if t is not None and mask.moved[t] else 1.0 for t in (site.weight, site.bias)
        )


def _is_listed(site: Site, part: Part) -> bool:
    """Whether a part is in the shared array and lists what is OFF of a linear layer."""
    if part.mask is None or part.weights is not None:
        return part.mask is None
    packed = part.mask.bits.packed
    return not packed or (site.weight not in packed and (site.bias is None or site.bias not in packed))


def _is_neutral(site: Site, mask: Prepared) -> bool:
    scales = mask.bits.scales
    return all(scales[t] == 1 for t in site.tensors) and not any(name in mask.state for name in site.buffers.values())
