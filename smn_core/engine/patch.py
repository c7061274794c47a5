"""A patch: one more array of theta, shared by all masks, in which the OFF weights of one mask at a time are 0.

Changing the mask changes its OFF weights alone, and not the whole model. `1 / alpha` is applied to the outputs of the
layers (sites.py). Where that is not possible, or costs more, all weights of the tensor are written instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from smn_core.engine.apply import Applier, put_back, take_out
from smn_core.engine.compact import CompactMask
from smn_core.engine.theta import views_of
from smn_core.layout import Layout


class Patch:
    """The shared array, allocated when first used, and which mask is in it. Owned by one thread."""

    def __init__(self, theta: Float[Tensor, "n_elements"], layout: Layout, applier: Applier) -> None:
        self._theta, self._layout, self._applier = theta, layout, applier
        self._flat: Tensor | None = None
        self._views: Mapping[str, Tensor] = {}
        # The mask in the array, theta's values at its OFF positions, the tensors that were written in full.
        self._written: tuple[CompactMask, Tensor, list[int]] | None = None

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
            self._views = views_of(self._flat, self._layout)
        return self._views

    def write(self, mask: CompactMask, moved: Bool[ndarray, "n_tensors"]) -> None:
        """Undo the last mask and write this one: `theta * on` where `moved`, `theta * on / alpha` elsewhere."""
        with self._writing() as flat:
            self._undo(flat)
            rewritten = np.flatnonzero((mask.scales != 1) & ~moved).tolist()
            values = take_out(flat, mask.off)
            for tensor in rewritten:
                self._applier.write_tensor(mask, tensor, flat)
            self._written = (mask, values, rewritten)

    def clean(self) -> None:
        """Undo the last mask: the array is theta again."""
        with self._writing() as flat:
            self._undo(flat)

    @contextmanager
    def holding(self, mask: CompactMask, tensors: Sequence[int], moved: Bool[ndarray, "n_tensors"]) -> Iterator[None]:
        """Write some tensors of a mask as `write` does, for the length of the block. The array must be clean."""
        changed = [tensor for tensor in tensors if mask.scales[tensor] != 1]
        with self._writing() as flat:
            taken, rewritten = [], []
            for tensor in changed:
                if moved[tensor]:
                    off = mask.off_of(tensor)
                    taken.append((off, take_out(flat, off)))
                else:
                    self._applier.write_tensor(mask, tensor, flat)
                    rewritten.append(tensor)
            yield
            for off, values in taken:
                put_back(flat, off, values)
            for tensor in rewritten:
                self._restore(flat, tensor)

    @contextmanager
    def _writing(self) -> Iterator[Float[Tensor, "n_elements"]]:
        """The array. After a failure half way nobody knows what it holds; it is dropped, and the next use copies theta.

        The wardrobe finds out by `views`, which are others then.
        """
        _ = self.views
        assert self._flat is not None
        try:
            yield self._flat
        except BaseException:
            self._flat, self._views, self._written = None, {}, None
            raise

    def _undo(self, flat: Float[Tensor, "n_elements"]) -> None:
        if self._written is not None:
            mask, values, rewritten = self._written
            put_back(flat, mask.off, values)
            for tensor in rewritten:
                self._restore(flat, tensor)
            self._written = None

    def _restore(self, flat: Float[Tensor, "n_elements"], tensor: int) -> None:
        where = self._layout.tensors[tensor].elements
        flat[where] = self._theta[where]
