"""theta' of a whole mask in one launch: `out[t] = theta[t] * on[t] * scales[t]` for every tensor t of the layout.

The reference is `smn_core.engine.apply.apply_slowly`. In float32 both agree to the last bit; in half precision the
product is taken in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from smn_core.engine.compact import CompactMask
from smn_core.errors import InvalidArgument
from smn_core.layout import Layout

# Weights that one program writes.
BLOCK = 4096


@triton.jit
def _unpack(theta, packed, scales, out, tensors, firsts, counts, first_chunk, BLOCK: tl.constexpr):
    chunk = first_chunk + tl.program_id(0)
    scale = tl.load(scales + tl.load(tensors + chunk))
    at = tl.load(firsts + chunk) + tl.arange(0, BLOCK)
    here = tl.arange(0, BLOCK) < tl.load(counts + chunk)
    byte = tl.load(packed + (at >> 3), mask=here, other=0).to(tl.int32)
    on = (byte >> (at & 7).to(tl.int32)) & 1
    weight = tl.load(theta + at, mask=here, other=0.0).to(tl.float32)
    tl.store(out + at, tl.where(on == 1, weight * scale, 0.0).to(out.dtype.element_ty), mask=here)


class KernelApplier:
    """An `Applier` for masks that the kernels can read."""

    def __init__(self, theta: Float[Tensor, "n_elements"], layout: Layout) -> None:
        self._theta = theta
        chunks = np.array(list(_cut(layout)), np.int64)
        edges = np.searchsorted(chunks[:, 0], range(len(layout.tensors) + 1)).tolist()
        self._of_tensor = [range(a, b) for a, b in pairwise(edges)]
        self._all = range(len(chunks))
        self._chunks = torch.from_numpy(np.ascontiguousarray(chunks.T)).to(theta.device)

    def write(self, mask: CompactMask, out: Float[Tensor, "n_elements"]) -> None:
        self._write(mask, self._all, out)

    def write_tensor(self, mask: CompactMask, tensor: int, out: Float[Tensor, "n_elements"]) -> None:
        self._write(mask, self._of_tensor[tensor], out)

    def _write(self, mask: CompactMask, chunks: range, out: Float[Tensor, "n_elements"]) -> None:
        if mask.for_kernels is None:
            raise InvalidArgument("this mask was not prepared for the kernels: it has no whole bits on the device")
        _unpack[(len(chunks),)](
            self._theta,
            mask.for_kernels.packed,
            mask.for_kernels.scales,
            out,
            *self._chunks,
            chunks.start,
            BLOCK=BLOCK,
        )


def _cut(layout: Layout) -> Iterator[tuple[int, int, int]]:
    """Consecutive weights, at most BLOCK: index of the tensor, first element, how many."""
    for index, tensor in enumerate(layout):
        for start in range(0, tensor.n_weights, BLOCK):
            yield index, tensor.first_element + start, min(BLOCK, tensor.n_weights - start)
