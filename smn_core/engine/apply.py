"""Apply a mask to theta: `theta'[t] = theta[t] * on[t] / alpha[t]` for every tensor t of the layout.

Flat arrays have the layout's `n_elements`; the padding between tensors is never read by a model. Every way multiplies
once by `float32(1 / alpha)`, and `on` is 0 or 1, so all ways agree to the last bit in float32. In half precision the
product is taken in float32 and rounded once. The compiled loop and the reference also agree on OFF weights' sign: +0.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from numpy import ndarray
from torch import Tensor

from smn_core import bits
from smn_core.engine.compact import CompactMask, inverse_alphas, positions_of
from smn_core.errors import InvalidArgument
from smn_core.layout import Layout, MaskableTensor
from smn_core.mask import TaskMask

LOG = logging.getLogger("smn.engine")
# Threads share the work in pieces of at most so many weights.
CHUNK_WEIGHTS = 2**15


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
        out[tensor.elements] = np.where(on, theta[tensor.elements] * scale, 0)
    return out


def applier_for(theta: Float[Tensor, "n_elements"], layout: Layout, threads: int) -> Applier:
    """The fastest way for theta's device and type. It compiles a loop where that has not been done on this machine."""
    if theta.device.type == "cpu" and theta.dtype in (torch.float32, torch.bfloat16):
        try:
            return LoopApplier(theta, layout, threads)
        except ImportError as error:
            LOG.warning("masks are written by torch's operations, which take several times as long: %s", error)
    return TorchApplier(theta, layout)


class LoopApplier:
    """float32 and bfloat16 on the CPU: one compiled pass, which `threads` threads share.

    Raises:
        ImportError: numba is missing.
    """

    def __init__(self, theta: Float[Tensor, "n_elements"], layout: Layout, threads: int) -> None:
        from smn_core.engine.loop import ALIGNED, KINDS, compile_loop

        self._kind, self._aligned_bytes = KINDS[theta.dtype], ALIGNED * theta.itemsize
        self._theta = theta.view(self._kind).numpy()
        self._loop = compile_loop(theta.dtype, positions_of(layout))
        self._chunks = np.concatenate([cut(index, tensor, tensor.first_element) for index, tensor in enumerate(layout)])
        edges = np.searchsorted(self._chunks[:, 0], range(len(layout.tensors) + 1)).tolist()
        self._of_tensor = [self._chunks[a:b] for a, b in pairwise(edges)]
        self._shares = _share_out(self._chunks, threads)
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="smn-apply") if threads > 1 else None

    def write(self, mask: CompactMask, out: Float[Tensor, "n_elements"]) -> None:
        others = [self._pool.submit(self._write, mask, out, s) for s in self._shares[1:]] if self._pool else []
        self._write(mask, out, self._shares[0])
        for other in others:
            other.result()

    def write_tensor(self, mask: CompactMask, tensor: int, out: Float[Tensor, "n_elements"]) -> None:
        self._write(mask, out, self._of_tensor[tensor])

    def write_near(self, mask: CompactMask, chunks: Int64[ndarray, "k 5"], out: Float[Tensor, "n"]) -> None:
        """Overwrite what chunks say of an array of any length, through the caches: the next to read finds it there."""
        if len(chunks):
            flat, off = out.view(self._kind).numpy(), mask.off.numpy()
            self._loop(self._theta, flat, chunks, mask.addresses, mask.scales, off, False)

    def _write(self, mask: CompactMask, out: Float[Tensor, "n_elements"], chunks: Int64[ndarray, "n 5"]) -> None:
        if out.data_ptr() % self._aligned_bytes:  # the processor would end this process
            raise InvalidArgument(f"theta' is written to memory at multiples of {self._aligned_bytes} bytes only")
        if len(chunks):
            flat, off = out.view(self._kind).numpy(), mask.off.numpy()
            self._loop(self._theta, flat, chunks, mask.addresses, mask.scales, off, True)


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


def cut(index: int, tensor: MaskableTensor, to: int) -> Int64[ndarray, "n 5"]:
    """The weights of one tensor in chunks, as the loop takes them, to be written from place `to` on."""
    starts = range(0, tensor.n_weights, CHUNK_WEIGHTS)
    first, n = tensor.first_element, tensor.n_weights
    return np.array([(index, first + s, min(CHUNK_WEIGHTS, n - s), s // 8, to + s) for s in starts], np.int64)


def _share_out(chunks: Int64[ndarray, "n 5"], n_shares: int) -> list[Int64[ndarray, "k 5"]]:
    """Share the chunks out in consecutive runs of about equally many weights."""
    ends = np.cumsum(chunks[:, 2])
    cuts = np.searchsorted(ends, [ends[-1] * k / n_shares for k in range(1, n_shares)])
    return np.split(chunks, cuts)
