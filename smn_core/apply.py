"""Packed bits x theta -> theta': `out[t] = theta[t] * on[t] / alpha[t]` for every tensor t of the layout.

Flat arrays have the layout's `n_elements`; the padding between tensors is never read by a model. Every way multiplies
by `float32(1 / alpha)`, once: bits are 0 or 1, so all ways agree to the last bit in float32.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from smn_core import bits
from smn_core.layout import Layout
from smn_core.mask import TaskMask

# In this many weights and their bits stay in a core's own cache between the passes over them.
CHUNK_WEIGHTS = 2**17
# From this density on, a list of the OFF positions takes no more memory than the bits, and zeroing them after one
# scaling pass is faster than unpacking (benchmarks/swap.py).
SPARSE_DENSITY = 1 - 1 / 64


@runtime_checkable
class Applier(Protocol):
    """One way to write theta' of a mask. A new way is a new implementation and a line in `applier_for`."""

    def load(self, mask: TaskMask) -> object:
        """What of a mask this way keeps resident (off the hot path)."""

    def write(self, loaded: object, out: Float[Tensor, "n_elements"]) -> None:
        """Overwrite `out` with theta' of a loaded mask."""


def inverse_alphas(mask: TaskMask) -> Float32[ndarray, "n_tensors"]:
    """`1 / alpha` of every tensor in float32; exactly 1 where a tensor is all ON."""
    return (1.0 / mask.alphas.astype(np.float64)).astype(np.float32)


def reference(theta: Float32[ndarray, "n_elements"], mask: TaskMask) -> Float32[ndarray, "n_elements"]:
    """The slow, obvious way that the others are tested against."""
    out = np.zeros_like(theta)
    for tensor, scale in zip(mask.layout, inverse_alphas(mask), strict=True):
        on = bits.unpack(mask.packed[tensor.bytes], tensor.n_weights)
        out[tensor.elements] = theta[tensor.elements] * on * scale
    return out


def applier_for(theta: Float[Tensor, "n_elements"], layout: Layout, threads: int) -> Applier:
    """The fastest way for where theta lies and its type."""
    if theta.device.type == "cpu" and theta.dtype == torch.float32:
        return NumpyApplier(theta.numpy(), layout, threads)
    return TorchApplier(theta, layout)


@dataclass(frozen=True)
class LoadedMask:
    """A mask with what the CPU way derives from it once.

    `off` lists, for every chunk, the positions of its OFF weights within the chunk; None where they are many.
    """

    mask: TaskMask
    scales: Float32[ndarray, "n_tensors"]
    off: list[ndarray] | None


class NumpyApplier:
    """float32 on the CPU, in cache-sized chunks shared out to `threads` threads."""

    def __init__(self, theta: Float32[ndarray, "n_elements"], layout: Layout, threads: int) -> None:
        self._theta = theta
        self._chunks = _chunks(layout)
        self._table = bits.byte_patterns().astype(np.float32)
        self._shares = _shares(self._chunks, threads)
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="smn-apply") if threads > 1 else None

    def load(self, mask: TaskMask) -> LoadedMask:
        off = self._off_by_chunk(mask) if mask.density >= SPARSE_DENSITY else None
        return LoadedMask(mask, inverse_alphas(mask), off)

    def write(self, loaded: object, out: Float[Tensor, "n_elements"]) -> None:
        assert isinstance(loaded, LoadedMask)
        way = self._unpack if loaded.off is None else self._scale_and_clear
        others = [self._pool.submit(way, loaded, out.numpy(), s) for s in self._shares[1:]] if self._pool else []
        way(loaded, out.numpy(), self._shares[0])
        for other in others:
            other.result()

    def _scale_and_clear(self, loaded: LoadedMask, out: Float32[ndarray, "n_elements"], share: range) -> None:
        assert loaded.off is not None
        for index in share:
            chunk = self._chunks[index]
            part = out[chunk.elements]
            np.multiply(self._theta[chunk.elements], loaded.scales[chunk.tensor], out=part)
            part[loaded.off[index]] = 0.0

    def _unpack(self, loaded: LoadedMask, out: Float32[ndarray, "n_elements"], share: range) -> None:
        patterns = np.empty((CHUNK_WEIGHTS // 8, 8), np.float32)
        for index in share:
            chunk = self._chunks[index]
            part = out[chunk.elements]
            # A table of the 256 bytes, the scale in it, is faster than unpacking, casting and scaling.
            scaled = patterns[: chunk.bytes.stop - chunk.bytes.start]
            table = self._table * loaded.scales[chunk.tensor]
            table.take(loaded.mask.packed[chunk.bytes], axis=0, out=scaled, mode="clip")
            np.multiply(self._theta[chunk.elements], scaled.reshape(-1)[: len(part)], out=part)

    def _off_by_chunk(self, mask: TaskMask) -> list[ndarray]:
        return [bits.off_positions(mask.packed[c.bytes], c.elements.stop - c.elements.start) for c in self._chunks]


@dataclass(frozen=True)
class PackedOnDevice:
    """The packed bits where theta lies, and `1 / alpha` of every tensor."""

    packed: Tensor
    scales: list[float]


class TorchApplier:
    """Any device and type, in torch operations only."""

    def __init__(self, theta: Float[Tensor, "n_elements"], layout: Layout) -> None:
        self._theta = theta
        self._layout = layout
        self._shifts = torch.arange(8, dtype=torch.uint8, device=theta.device)

    def load(self, mask: TaskMask) -> PackedOnDevice:
        packed = torch.from_numpy(mask.packed.copy()).to(self._theta.device)
        return PackedOnDevice(packed, inverse_alphas(mask).tolist())

    def write(self, loaded: object, out: Float[Tensor, "n_elements"]) -> None:
        assert isinstance(loaded, PackedOnDevice)
        for tensor, scale in zip(self._layout, loaded.scales, strict=True):
            on = ((loaded.packed[tensor.bytes, None] >> self._shifts) & 1).flatten()[: tensor.n_weights]
            part = out[tensor.elements]
            torch.mul(self._theta[tensor.elements], on.to(part.dtype), out=part)
            part.mul_(scale)


@dataclass(frozen=True)
class Chunk:
    """A run of one tensor's weights: the tensor's index, where they lie in a flat array, where in the packed bits."""

    tensor: int
    elements: slice
    bytes: slice


def _chunks(layout: Layout) -> list[Chunk]:
    chunks = []
    for index, tensor in enumerate(layout):
        for start in range(0, tensor.n_weights, CHUNK_WEIGHTS):
            n = min(CHUNK_WEIGHTS, tensor.n_weights - start)
            first = tensor.first_element + start
            in_bytes = slice(first // 8, first // 8 + bits.packed_bytes(n))
            chunks.append(Chunk(index, slice(first, first + n), in_bytes))
    return chunks


def _shares(chunks: list[Chunk], n_shares: int) -> list[range]:
    """Cut the chunks into consecutive runs of about equal numbers of weights."""
    ends = np.cumsum([c.elements.stop - c.elements.start for c in chunks])
    cuts = np.searchsorted(ends, [ends[-1] * k / n_shares for k in range(1, n_shares)])
    return [range(a, b) for a, b in pairwise([0, *cuts.tolist(), len(chunks)])]
