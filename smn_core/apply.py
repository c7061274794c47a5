"""Packed bits x theta -> theta': `out[t] = theta[t] * on[t] / alpha[t]` for every tensor t of the layout.

Flat arrays have the layout's `n_elements`; the padding between tensors is never read by a model. Every way multiplies
by `float32(1 / alpha)`, once: bits are 0 or 1, so all ways agree to the last bit in float32.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from smn_core import bits
from smn_core.layout import Layout
from smn_core.mask import TaskMask

# In this many weights and their bits stay in a core's own cache between the passes over them.
CHUNK_WEIGHTS = 2**16
# Above this density it is cheaper to scale everything and then zero the few OFF positions (benchmarks/swap.py).
SPARSE_DENSITY = 0.99


class Applier(Protocol):
    """One way to write theta' of a mask. A new way is a new implementation and a line in `applier_for`."""

    def load(self, mask: TaskMask) -> object:
        """What of a mask this way keeps resident (off the hot path)."""

    def write(self, loaded: object, out: Float[Tensor, n_elements]) -> None:
        """Overwrite `out` with theta' of a loaded mask."""


def inverse_alphas(mask: TaskMask) -> Float32[ndarray, n_tensors]:
    """`1 / alpha` of every tensor in float32; exactly 1 where a tensor is all ON."""
    return (1.0 / mask.alphas.astype(np.float64)).astype(np.float32)


def reference(theta: Float32[ndarray, n_elements], mask: TaskMask) -> Float32[ndarray, n_elements]:
    """The slow, obvious way that the others are tested against."""
    out = np.zeros_like(theta)
    for tensor, scale in zip(mask.layout, inverse_alphas(mask), strict=True):
        on = bits.unpack(mask.packed[tensor.bytes], tensor.n_weights)
        out[tensor.elements] = theta[tensor.elements] * on * scale
    return out


def applier_for(theta: Float[Tensor, n_elements], layout: Layout, threads: int) -> Applier:
    """The fastest way for where theta lies and its type."""
    if theta.device.type == "cpu" and theta.dtype == torch.float32:
        return NumpyApplier(theta.numpy(), layout, threads)
    return TorchApplier(theta, layout)


@dataclass(frozen=True)
class LoadedMask:
    """A mask with what the CPU way derives from it once."""

    mask: TaskMask

    @cached_property
    def scales(self) -> Float32[ndarray, n_tensors]:
        return inverse_alphas(self.mask)

    @cached_property
    def off(self) -> ndarray | None:
        """Flat positions of the OFF weights where they are few, else None."""
        if self.mask.density < SPARSE_DENSITY:
            return None
        return bits.off_positions(self.mask.packed, self.mask.layout.n_elements)


class NumpyApplier:
    """float32 on the CPU, in cache-sized chunks shared out to `threads` threads."""

    def __init__(self, theta: Float32[ndarray, n_elements], layout: Layout, threads: int) -> None:
        self._theta = theta
        self._shares = _shares(_chunks(layout), threads)
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="smn-apply") if threads > 1 else None

    def load(self, mask: TaskMask) -> LoadedMask:
        loaded = LoadedMask(mask)
        _ = loaded.scales, loaded.off
        return loaded

    def write(self, loaded: object, out: Float[Tensor, n_elements]) -> None:
        assert isinstance(loaded, LoadedMask)
        target = out.numpy()
        way = self._unpack if loaded.off is None else self._scale
        others = [self._pool.submit(way, loaded, target, s) for s in self._shares[1:]] if self._pool else []
        way(loaded, target, self._shares[0])
        for other in others:
            other.result()
        if loaded.off is not None:
            target[loaded.off] = 0.0

    def _scale(self, loaded: LoadedMask, out: ndarray, chunks: list[Chunk]) -> None:
        for tensor, elements, _ in chunks:
            np.multiply(self._theta[elements], loaded.scales[tensor], out=out[elements])

    def _unpack(self, loaded: LoadedMask, out: ndarray, chunks: list[Chunk]) -> None:
        packed, scales = loaded.mask.packed, loaded.scales
        for tensor, elements, in_bytes in chunks:
            part = out[elements]
            on = bits.unpack(packed[in_bytes], len(part)).view(np.uint8)
            np.multiply(self._theta[elements], on, out=part)
            np.multiply(part, scales[tensor], out=part)


class TorchApplier:
    """Any device and type, in torch operations only."""

    def __init__(self, theta: Float[Tensor, n_elements], layout: Layout) -> None:
        self._theta = theta
        self._layout = layout
        self._shifts = torch.arange(8, dtype=torch.uint8, device=theta.device)

    def load(self, mask: TaskMask) -> tuple[Tensor, list[float]]:
        packed = torch.from_numpy(mask.packed.copy()).to(self._theta.device)
        return packed, inverse_alphas(mask).tolist()

    def write(self, loaded: object, out: Float[Tensor, n_elements]) -> None:
        packed, scales = loaded  # type: ignore[misc]
        for tensor, scale in zip(self._layout, scales, strict=True):
            on = ((packed[tensor.bytes, None] >> self._shifts) & 1).flatten()[: tensor.n_weights]
            part = out[tensor.elements]
            torch.mul(self._theta[tensor.elements], on.to(part.dtype), out=part)
            part.mul_(scale)


Chunk = tuple[int, slice, slice]
"""Index of the tensor, where the chunk lies in the flat weights, where in the packed bits."""


def _chunks(layout: Layout) -> list[Chunk]:
    chunks = []
    for index, tensor in enumerate(layout):
        for start in range(0, tensor.n_weights, CHUNK_WEIGHTS):
            n = min(CHUNK_WEIGHTS, tensor.n_weights - start)
            first = tensor.first_element + start
            chunks.append((index, slice(first, first + n), slice(first // 8, first // 8 + bits.packed_bytes(n))))
    return chunks


def _shares(chunks: list[Chunk], n_shares: int) -> list[list[Chunk]]:
    """Cut the chunks into consecutive runs of about equal numbers of weights."""
    ends = np.cumsum([elements.stop - elements.start for _, elements, _ in chunks])
    cuts = np.searchsorted(ends, [ends[-1] * k / n_shares for k in range(1, n_shares)])
    edges = [0, *cuts.tolist(), len(chunks)]
    return [chunks[a:b] for a, b in pairwise(edges)]
