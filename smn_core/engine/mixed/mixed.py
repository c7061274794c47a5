"""One forward for a batch that mixes masks.

A site is a module that masks change (sites.py). All other modules run on the whole batch. A site gets its input for the
whole batch too, and runs it span by span, with weights that lie in a slot or are written where they are used: into
scratch (scratch.py), or as a patch. A linear layer may instead run one product with the root's weights for all spans
and correct its output (correction.py), or Triton's kernels (kernels/linear.py). For that the input of every site must
hold, for each row of the batch in order, a block of as many rows. rehearsal.py checks this once, wholly; every call
checks that the rows divide.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor, nn

from smn_core.engine.costs import Costs, base_pays, flips_pay, mixing_pays, slot_pays
from smn_core.engine.device.graphs import MAX_IMAGES
from smn_core.engine.kernels.choice import Kernels
from smn_core.engine.kernels.table import Table
from smn_core.engine.mixed.correction import Corrector
from smn_core.engine.mixed.lists import Lists
from smn_core.engine.patch import Patch
from smn_core.engine.scratch import Scratch
from smn_core.engine.sites import Site
from smn_core.engine.span import Span
from smn_core.engine.theta import Theta
from smn_core.engine.wearable import WearableMask

if TYPE_CHECKING:
    from smn_core.engine.kernels.linear import Layer


class Unsplittable(Exception):
    """The input of a site is not the rows of the batch. The batch must run one segment after the other."""


class Mixed:
    """Runs batches that mix masks. Owned by one thread.

    Attributes:
        rest: weights and statistics that the sites hold when they do not run: the root's.
        scratch: where weights are written that are used at once.
        kernels: run the linear layers of a whole batch in one launch, whatever the masks; None where there are none.
    """

    def __init__(self, theta: Theta, patch: Patch, corrector: Corrector, costs: Costs | None) -> None:
        self._sites, self._layout = theta.sites, theta.layout
        self._patch, self._corrector, self._costs = patch, corrector, costs
        self.scratch = Scratch(theta, wanted=mixing_pays(theta.sites, theta.layout))
        self._root_weights, self._root_state = theta.views, theta.state
        self.rest = theta.views, theta.state
        self.kernels: Kernels | None = theta.kernels
        self._layers: dict[int, Layer] = {}
        self._tables: dict[int, Table] = {}
        self._spans: Sequence[Span] = ()
        self._lists = Lists((), len(theta.layout.tensors))
        self._n_rows = 0

    @property
    def all_linear(self) -> bool:
        """Whether the kernels run every site. Then masks need no slots, and all batches run the same launches."""
        return self.kernels is not None and all(site.is_linear for site in self._sites)

    @property
    def corrects(self) -> bool:
        """Whether a linear layer may run one product for all masks and correct it."""
        return self._corrector.available

    @property
    def wants_slots(self) -> bool:
        """Whether masks that are no patches need a slot in a mixed batch. Else `Span.weights` may be None for them."""
        return not self.scratch.available or (self._costs is not None and slot_pays(self._costs))

    def run(self, model: nn.Module, x: Float[Tensor, "n 3 h w"], spans: Sequence[Span]) -> Float[Tensor, "n d"]:
        """`z[s.start:s.stop] = model(x[s.start:s.stop])` through the weights of every span s.

        Raises:
            Unsplittable: it cannot be done in one forward.
        """
        self.take(spans, len(x))
        return self.forward(model, x)

    def take(self, spans: Sequence[Span], n_rows: int) -> None:
        """Take the spans of the next batch of `n_rows`. Rows behind the last span only fill the batch up."""
        self._spans, self._n_rows = spans, n_rows
        if self.kernels is not None:
            starts = [(span.start, span.mask.compact.for_kernels if span.mask is not None else None) for span in spans]
            self._table.fill([*starts, (spans[-1].stop, None)], n_rows)
        else:
            self._lists = Lists(spans, len(self._layout.tensors))

    def forward(self, model: nn.Module, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Run the spans that were taken, as `run` does."""
        if any(span.mask is not None and span.weights is None and span.mask.patched for span in self._spans):
            self._patch.clean()
        try:
            for site in self._sites:
                site.show(*self.rest)
                site.replace(partial(self._run_site, site))
            return model(x)
        finally:
            for site in self._sites:
                site.restore()

    def _run_site(self, site: Site, x: Tensor) -> Tensor:
        """What the model calls in place of the module's own forward."""
        block, rest = divmod(x.shape[0], self._n_rows)
        if rest:
            raise Unsplittable(f"a {type(site.module).__name__} gets {x.shape[0]} rows for {self._n_rows} images")
        if self.kernels is not None and site.is_linear:
            return self._run_in_one_launch(self.kernels, site, x)
        try:
            if site.is_linear:
                return self._run_linear(site, x)
            spans = self._merge_spans(site)
            if len(spans) == 1 and spans[0].mask is None:
                return self._run_span(site, x, spans[0])
            return torch.cat([self._run_span(site, x[s.start * block : s.stop * block], s) for s in spans])
        finally:
            site.show(*self.rest)

    @property
    def _table(self) -> Table:
        """Of the size for this batch. Captured graphs read the one for the sizes that are captured: it must stay."""
        capacity = 1 << max(MAX_IMAGES - 1, self._n_rows - 1).bit_length()
        if capacity not in self._tables:
            self._tables[capacity] = Table(capacity, self._patch.device)
        return self._tables[capacity]

    def _run_in_one_launch(self, kernels: Kernels, site: Site, x: Float[Tensor, "*r i"]) -> Float[Tensor, "*r o"]:
        """Run a linear layer for all spans by the kernels."""
        assert site.weight is not None
        if site.weight not in self._layers:
            weight, bias = self._find_root(site)
            self._layers[site.weight] = kernels.layer(weight, bias, site.weight, -1 if site.bias is None else site.bias)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        block = rows.shape[0] // self._n_rows
        out = kernels.linear(rows, self._layers[site.weight], kernels.kernel_layout, self._table, block)
        return site.finish(out).view(*x.shape[:-1], out.shape[-1])

    def _merge_spans(self, site: Site) -> list[Span]:
        """The spans as a site sees them: a mask that changes nothing here is the root; equal neighbours become one."""
        found: list[Span] = []
        for span in self._spans:
            mask, weights = span.mask, span.weights
            if mask is not None and _is_neutral(site, mask):
                mask, weights = None, self._root_weights
            if found and found[-1].mask is mask:
                found[-1] = Span(found[-1].start, span.stop, mask, weights)
            else:
                found.append(Span(span.start, span.stop, mask, weights))
        return found

    def _run_span(self, site: Site, x: Tensor, span: Span) -> Tensor:
        """Run the rows of one span through the module's own forward."""
        mask, state = span.mask, self._root_state
        if mask is not None and mask.state:
            state = {**state, **mask.state}
        if span.weights is not None:
            site.show(span.weights, state)
            return site.original(x)
        assert mask is not None
        if self._writes_whole(site, mask):
            site.show(self.scratch.write(mask.compact, site), state)
            return site.original(x)
        with self._patch.holding(mask.compact, site.tensors, mask.moved):
            site.show(self._patch.views, state)
            if site.scalable and (scales := self._find_scales(site, mask)) != (1.0, 1.0):
                return site.run_scaled(x, site.module.weight, site.module.bias, *scales)  # type: ignore[arg-type]
            return site.original(x)

    def _run_linear(self, site: Site, x: Float[Tensor, "*r i"]) -> Float[Tensor, "*r o"]:
        """Run a linear layer, span by span.

        Neighbours that share the product with the root's weights run it together and are corrected together. A single
        span that the mask changes gains nothing from that.
        """
        assert site.weight is not None
        n_out, n_in = self._layout.tensors[site.weight].shape
        rows = x.reshape(-1, n_in).contiguous()
        block = rows.shape[0] // self._n_rows
        neutral = self._lists.find_neutral(site.tensors)
        shared = (neutral | self._find_correctable(site, block)).tolist()
        if all(shared) and (len(shared) > 1 or neutral[0]):
            y = self._run_shared(site, rows, slice(0, len(shared)), bool(neutral.all()), block)
            return y.view(*x.shape[:-1], n_out)
        out = rows.new_empty(len(rows), n_out)
        for together, group in groupby(range(len(self._spans)), shared.__getitem__):
            numbers = list(group)
            first, behind = numbers[0], numbers[-1] + 1
            if together and (behind - first > 1 or neutral[first]):
                where = slice(self._spans[first].start * block, self._spans[behind - 1].stop * block)
                alike = bool(neutral[first:behind].all())
                out[where] = self._run_shared(site, rows[where], slice(first, behind), alike, block)
                continue
            for span in self._spans[first:behind]:
                where = slice(span.start * block, span.stop * block)
                self._multiply_span(site, out[where], rows[where], span)
        return out.view(*x.shape[:-1], n_out)

    def _run_shared(
        self, site: Site, x: Float[Tensor, "r i"], which: slice, neutral: bool, block: int
    ) -> Float[Tensor, "r o"]:
        """Run the rows of neighbouring spans through the root's weights, and correct them where a mask changes them."""
        assert site.weight is not None
        weight, bias = self._find_root(site)
        if neutral:
            return site.multiply(x, weight, bias)
        y = site.multiply_bare(x, weight)
        self._corrector.correct(y, x, self._lists, site.weight, bias if site.bias is None else site.bias, which, block)
        return site.finish(y)

    def _find_correctable(self, site: Site, block: int) -> Bool[ndarray, "p"]:
        """For every span, whether the root's product can be corrected for it, and that costs less than its own."""
        assert site.weight is not None
        if self._costs is None or not self._corrector.available:
            return np.zeros(len(self._spans), bool)
        listed = np.array([_is_listed(site, span) for span in self._spans])
        n_out, n_in = self._layout.tensors[site.weight].shape
        n_rows = (self._lists.edges[:, 1] - self._lists.edges[:, 0]) * block
        return listed & base_pays(
            self._costs, n_rows, n_out * n_in, n_out, self._lists.count_off(site.weight), self.scratch.available
        )

    def _writes_whole(self, site: Site, mask: WearableMask) -> bool:
        """Whether the weights of a mask without a slot are written into scratch for a site, and not as a patch."""
        if not mask.patched:
            return True
        compact, own = mask.compact, [t for t in site.tensors if mask.compact.scales[t] != 1]
        if not self.scratch.available or not own or self._costs is None:
            return False
        n_weights = sum(self._layout.tensors[t].n_weights for t in own)
        n_off = int(sum(compact.bounds[t + 1] - compact.bounds[t] for t in own))
        return not mask.moved[own].all() or not flips_pay(self._costs, n_weights, n_off)

    def _multiply_span(self, site: Site, out: Float[Tensor, "r o"], x: Float[Tensor, "r i"], span: Span) -> None:
        """`out = x @ (W * on / alpha).T + b` for the mask of one span."""
        mask, module = span.mask, site.module
        assert mask is not None
        if span.weights is not None or self._writes_whole(site, mask):
            weights = span.weights if span.weights is not None else self.scratch.write(mask.compact, site)
            site.show(weights, self._root_state)
            site.multiply_into(out, x, module.weight, module.bias)  # type: ignore[arg-type]
            return
        with self._patch.holding(mask.compact, site.tensors, mask.moved):
            site.show(self._patch.views, self._root_state)
            site.multiply_into(out, x, module.weight, module.bias, *self._find_scales(site, mask))  # type: ignore[arg-type]

    def _find_root(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a linear layer as the root has them, whether maskable or not."""
        weight, bias = (site.parameters.get(own) for own in ("weight", "bias"))
        assert weight is not None
        return self._root_weights[weight], site.module._parameters.get("bias") if bias is None else self._root_weights[
            bias
        ]

    @staticmethod
    def _find_scales(site: Site, mask: WearableMask) -> tuple[float, float]:
        """Of a patch: the scale of the product with the weight, and of the bias."""
        return tuple(  # type: ignore[return-value]
            float(mask.compact.scales[t]) if t is not None and mask.moved[t] else 1.0 for t in (site.weight, site.bias)
        )


def _is_listed(site: Site, span: Span) -> bool:
    """Whether a span is the root's, or its mask is a patch that lists all OFF weights and biases of a linear layer."""
    if span.mask is None or span.weights is not None:
        return span.mask is None
    packed = span.mask.compact.packed
    return not packed or (site.weight not in packed and (site.bias is None or site.bias not in packed))


def _is_neutral(site: Site, mask: WearableMask) -> bool:
    """Whether a mask changes neither weights nor statistics of a site."""
    scales = mask.compact.scales
    return all(scales[t] == 1 for t in site.tensors) and not any(name in mask.state for name in site.buffers.values())
