"""Scratch: theta' of one module at a time, written just before its product reads it, and then written over.

    scratch[w] = theta[w] * on[w] / alpha[w]      for the weights w of one module, for one mask

A slot of theta' is larger than the core's cache: it goes to memory and comes back layer by layer. One layer stays in
cache between the two, and so does its part of theta, which all masks of a batch read. A mask that is worn so keeps
nothing behind: it takes no slot from another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import Tensor, nn

from smn_core.engine.apply import LoopApplier, cut
from smn_core.engine.compact import CompactMask
from smn_core.engine.sites import Site, Weights
from smn_core.engine.theta import Theta

LINE_BYTES = 64


@dataclass(frozen=True, eq=False)
class _Place:
    """What the loop writes for one site, and the parameters that the site then finds."""

    chunks: Int64[ndarray, "n 5"]
    views: Weights


class Scratch:
    """One array, as long as the module with the most weights needs. Owned by one thread.

    Args:
        wanted: False leaves the array out; then nothing is available.

    Attributes:
        available: whether there is a loop that writes into it. Nothing else may be called where there is not.
    """

    def __init__(self, theta: Theta, wanted: bool = True) -> None:
        self._loop = theta.applier if wanted and isinstance(theta.applier, LoopApplier) else None
        sites = theta.sites if self._loop is not None else []
        line = LINE_BYTES // theta.flat.itemsize
        begins = {id(site): _starts(theta, site.tensors, line) for site in sites}
        self._array = torch.empty(max((starts[-1] for starts in begins.values()), default=0), dtype=theta.flat.dtype)
        self._places = {id(site): _place(theta, site.tensors, begins[id(site)], self._array) for site in sites}

    @property
    def available(self) -> bool:
        return self._loop is not None

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def write(self, mask: CompactMask, site: Site) -> Weights:
        """Write theta' of a mask for one site; return its maskable parameters, by name, good until the next call."""
        assert self._loop is not None
        place = self._places[id(site)]
        self._loop.write_near(mask, place.chunks, self._array)
        return place.views


def _starts(theta: Theta, tensors: Sequence[int], line: int) -> list[int]:
    """Where each tensor begins, at the begin of a line of the cache; and where the last one's lines end."""
    lengths = [-(-theta.layout.tensors[t].n_weights // line) * line for t in tensors]
    return list(accumulate(lengths, initial=0))


def _place(theta: Theta, tensors: Sequence[int], starts: Sequence[int], array: Tensor) -> _Place:
    chunks: list[ndarray] = [np.zeros((0, 5), np.int64)]
    views: dict[str, Tensor] = {}
    for index, start in sorted(zip(tensors, starts, strict=False)):
        tensor = theta.layout.tensors[index]
        chunks.append(cut(index, tensor, start))
        view = array[start : start + tensor.n_weights].view(tensor.shape)
        views[tensor.name] = nn.Parameter(view, requires_grad=False)
    return _Place(np.concatenate(chunks), views)
