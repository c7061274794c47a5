"""One more array of theta in which the OFF weights of one mask at a time are 0: a swap costs the flips, not the model.

`1 / alpha` is not in the array: it is applied behind the product, or to the bias there (sites.py). Tensors for which
that cannot be, or does not pay, are rewritten whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor, nn

from smn_core.engine.apply import Applier, put_back, take_out
from smn_core.engine.compact import Resident
from smn_core.layout import Layout


class Patch:
    """The array, allocated when first used, and what it holds. Owned by one thread."""

    def __init__(self, theta: Float[Tensor, "n_elements"], layout: Layout, applier: Applier) -> None:
        self._theta, self._layout, self._applier = theta, layout, applier
        self._flat: Tensor | None = None
        self._views: Mapping[str, Tensor] = {}
        self._worn: tuple[Resident, Tensor, list[int]] | None = None

    @property
    def device(self) -> torch.device:
        return self._theta.device

    @property
    def nbytes(self) -> int:
        flat = self._flat  # the thread that owns it may let go of it meanwhile
        return 0 if flat is None else flat.nbytes

    @property
    def views(self) -> Mapping[str, Tensor]:
        """The parameters in the array, by name."""
        if self._flat is None:
            self._flat = self._theta.clone()
            self._views = views(self._flat, self._layout)
        return self._views

    def wear(self, bits: Resident, moved: Bool[ndarray, "n_tensors"]) -> None:
        """Undo the last mask and write this one: `theta * on` where `moved`, `theta * on / alpha` elsewhere."""
        with self._writing() as flat:
            self._undo(flat)
            rewritten = np.flatnonzero((bits.scales != 1) & ~moved).tolist()
            values = take_out(flat, bits.off)
            for tensor in rewritten:
                self._applier.write_tensor(bits, tensor, flat)
            self._worn = (bits, values, rewritten)

    def clean(self) -> None:
        """The array is theta again."""
        with self._writing() as flat:
            self._undo(flat)

    @contextmanager
    def holding(self, bits: Resident, tensors: Sequence[int], moved: Bool[ndarray, "n_tensors"]) -> Iterator[None]:
        """In a clean array, some tensors of a mask for the length of the block, as `wear` writes them."""
        changed = [tensor for tensor in tensors if bits.scales[tensor] != 1]
        with self._writing() as flat:
            taken, rewritten = [], []
            for tensor in changed:
                if moved[tensor]:
                    off = bits.off_of(tensor)
                    taken.append((off, take_out(flat, off)))
                else:
                    self._applier.write_tensor(bits, tensor, flat)
                    rewritten.append(tensor)
            yield
            for off, values in taken:
                put_back(flat, off, values)
            for tensor in rewritten:
                self._restore(flat, tensor)

    @contextmanager
    def _writing(self) -> Iterator[Float[Tensor, "n_elements"]]:
        """The array; after a failure half way nobody knows what it holds, so the next use copies theta anew."""
        _ = self.views
        assert self._flat is not None
        try:
            yield self._flat
        except BaseException:
            self._flat, self._views, self._worn = None, {}, None
            raise

    def _undo(self, flat: Float[Tensor, "n_elements"]) -> None:
        if self._worn is not None:
            bits, values, rewritten = self._worn
            put_back(flat, bits.off, values)
            for tensor in rewritten:
                self._restore(flat, tensor)
            self._worn = None

    def _restore(self, flat: Float[Tensor, "n_elements"], tensor: int) -> None:
        where = self._layout.tensors[tensor].elements
        flat[where] = self._theta[where]


def views(flat: Float[Tensor, "n_elements"], layout: Layout) -> dict[str, Tensor]:
    """The parameters of a flat array of weights, by name."""
    return {t.name: nn.Parameter(flat[t.elements].view(t.shape), requires_grad=False) for t in layout}
