"""Apply a mask to theta: `theta'[t] = theta[t] * on[t] / alpha[t]` for every tensor t of the layout.

Flat arrays have the layout's `n_elements`; the padding between tensors is never read by a model. Every way multiplies
once by `float32(1 / alpha)`, and `on` is 0 or 1, so all ways agree to the last bit in float32.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from numpy import ndarray
from torch import Tensor

from smn_core import bits
from smn_core.engine.compact import CompactMask, inverse_alphas
from smn_core.layout import Layout
from smn_core.mask import TaskMask

# So many weights and their bits stay in a core's own cache between the passes over them.
CHUNK_WEIGHTS = 2**17


@runtime_checkable
class Applier(Protocol):
    """One way to write theta' of a mask. A new way is a new implementation and a line in `applier_for`."""

    def write(self, mask: CompactMask, out: Float[Tensor, "n_elements"]) -> None:
        """Overwrite `out` with theta'."""

    def write_tensor(self, mask: CompactMask, tensor: int, out: Float[Tensor, "n_elements"]) -> None:
        """Overwrite the part of `out` that belongs to one tensor, by its index in the layout."""


def apply_slowly(theta: Float32[ndarray, "n_elements"], mask: TaskMask) -> Float32[ndarray, "n_elements"]:
    """theta' of a mask in the slow, obvious way: the reference that tests compare the others with."""
    out = np.zeros_like(theta)
    for tensor, scale in zip(mask.layout, inverse_alphas(mask), strict=True):
        on = bits.unpack(mask.packed[tensor.bytes], tensor.n_weights)
        out[tensor.elements] = theta[tensor.elements] * on * scale
    return out


def applier_for(theta: Float[Tensor, "n_elements"], layout: Layout, threads: int) -> Applier:
    """The fastest way for theta's device and type."""
    if theta.device.type == "cpu" and theta.dtype == torch.float32:
        return NumpyApplier(theta.numpy(), layout, threads)
    return TorchApplier(theta, layout)


class NumpyApplier:
    """float32 on the CPU: `threads` threads share the work, in chunks that fit a cache."""

    def __init__(self, theta: Float32[ndarray, "n_elements"], layout: Layout, threads: int) -> None:
        self._theta = theta
        self._layout = layout
        self._chunks = _cut(layout)
        self._starts = np.array([c.elements.start for c in self._chunks])
        tensors = [c.tensor for c in self._chunks]
        edges = np.searchsorted(tensors, range(len(layout.tensors) + 1)).tolist()
        self._of_tensor = [range(a, b) for a, b in pairwise(edges)]
        self._table = bits.byte_patterns().astype(np.float32)
        self._shares = _share_out(self._chunks, threads)
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="smn-apply") if threads > 1 else None

    def write(self, mask: CompactMask, out: Float[Tensor, "n_elements"]) -> None:
        flat = out.numpy()
        others = [self._pool.submit(self._write, mask, flat, s) for s in self._shares[1:]] if self._pool else []
        self._write(mask, flat, self._shares[0])
        for other in others:
            other.result()

    def write_tensor(self, mask: CompactMask, tensor: int, out: Float[Tensor, "n_elements"]) -> None:
        if tensor in mask.packed:
            self._write(mask, out.numpy(), self._of_tensor[tensor])
            return
        flat, where = out.numpy(), self._layout.tensors[tensor].elements
        np.multiply(self._theta[where], mask.scales[tensor], out=flat[where])
        flat[mask.off_of(tensor).numpy()] = 0.0

    def _write(self, mask: CompactMask, out: Float32[ndarray, "n_elements"], share: range) -> None:
        off = mask.off.numpy()
        # The search must not convert the whole list to the type of the edges.
        cuts = np.searchsorted(off, self._starts[share.start : share.stop + 1].astype(off.dtype)).tolist()
        cuts += [len(off)] * (len(share) + 1 - len(cuts))
        patterns: Float32[ndarray, "n 8"] | None = None
        for index, (first, last) in zip(share, pairwise(cuts), strict=True):
            chunk = self._chunks[index]
            theta, part, scale = self._theta[chunk.elements], out[chunk.elements], mask.scales[chunk.tensor]
            if (packed := mask.packed.get(chunk.tensor)) is not None:
                patterns = np.empty((CHUNK_WEIGHTS // 8, 8), np.float32) if patterns is None else patterns
                # A table of the 256 bytes, the scale in it, is faster than unpacking, casting and scaling.
                scaled = patterns[: chunk.bytes.stop - chunk.bytes.start]
                (self._table * scale).take(packed.numpy()[chunk.bytes], axis=0, out=scaled, mode="clip")
                np.multiply(theta, scaled.reshape(-1)[: len(part)], out=part)
            elif scale == 1:
                np.copyto(part, theta)
            else:
                np.multiply(theta, scale, out=part)
                out[off[first:last]] = 0.0


class TorchApplier:
    """Any device and type, by torch's operations alone."""

    def __init__(self, theta: Float[Tensor, "n_elements"], layout: Layout) -> None:
        self._theta = theta
        self._layout = layout
        self._shifts = torch.arange(8, dtype=torch.uint8, device=theta.device)

    def write(self, mask: CompactMask, out: Float[Tensor, "n_elements"]) -> None:
        for index in range(len(self._layout.tensors)):
            self._write(mask, index, out)
        out.index_fill_(0, mask.off.long(), 0.0)

    def write_tensor(self, mask: CompactMask, tensor: int, out: Float[Tensor, "n_elements"]) -> None:
        self._write(mask, tensor, out)
        out.index_fill_(0, mask.off_of(tensor).long(), 0.0)

    def _write(self, mask: CompactMask, index: int, out: Float[Tensor, "n_elements"]) -> None:
        """Write one tensor, but do not clear its listed positions."""
        tensor, scale = self._layout.tensors[index], float(mask.scales[index])
        theta, part = self._theta[tensor.elements], out[tensor.elements]
        if (packed := mask.packed.get(index)) is not None:
            on = ((packed[:, None] >> self._shifts) & 1).flatten()[: tensor.n_weights]
            torch.mul(theta, on.to(part.dtype), out=part)
            part.mul_(scale)
        else:
            torch.mul(theta, scale, out=part)


def take_out(flat: Float[Tensor, "n_elements"], positions: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Set `flat[positions]` to 0, and return the values that were there."""
    if _numpy_is_quicker(flat):
        array, some = flat.numpy(), positions.numpy().astype(np.intp)  # in one go: numpy's own way is slower
        values = torch.from_numpy(array[some])
        array[some] = 0.0
        return values
    at = positions.long()
    values = flat[at]
    flat.index_fill_(0, at, 0.0)
    return values


def put_back(flat: Float[Tensor, "n_elements"], positions: Int[Tensor, "n"], values: Float[Tensor, "n"]) -> None:
    """Set `flat[positions]` to `values`."""
    if _numpy_is_quicker(flat):
        flat.numpy()[positions.numpy().astype(np.intp)] = values.numpy()
    else:
        flat[positions.long()] = values


def _numpy_is_quicker(flat: Tensor) -> bool:
    """Whether numpy can read this array: for a handful of positions its call costs a fraction of torch's."""
    return flat.device.type == "cpu" and flat.dtype == torch.float32


@dataclass(frozen=True)
class Chunk:
    """Consecutive weights of one tensor: its index, where they lie in a flat array, where in its packed bits."""

    tensor: int
    elements: slice
    bytes: slice


def _cut(layout: Layout) -> list[Chunk]:
    chunks = []
    for index, tensor in enumerate(layout):
        for start in range(0, tensor.n_weights, CHUNK_WEIGHTS):
            n = min(CHUNK_WEIGHTS, tensor.n_weights - start)
            first = tensor.first_element + start
            in_bytes = slice(start // 8, start // 8 + bits.packed_bytes(n))
            chunks.append(Chunk(index, slice(first, first + n), in_bytes))
    return chunks


def _share_out(chunks: list[Chunk], n_shares: int) -> list[range]:
    """Share the chunks out in consecutive ranges of about equally many weights."""
    ends = np.cumsum([c.elements.stop - c.elements.start for c in chunks])
    cuts = np.searchsorted(ends, [ends[-1] * k / n_shares for k in range(1, n_shares)])
    return [range(a, b) for a, b in pairwise([0, *cuts.tolist(), len(chunks)])]
