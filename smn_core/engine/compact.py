"""A mask as the engine keeps it: for every tensor its OFF positions where they are few, its packed bits where not.

Masks are nearly all ones, so most of one is a short list: 2,650 OFF weights of a ViT-Tiny take 11 KB, all its bits
664 KB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from smn_core import bits
from smn_core.engine.device.transfer import to_device
from smn_core.engine.kernelmask import KernelLayout, KernelMask
from smn_core.layout import Layout
from smn_core.mask import TaskMask

# From this density on a list, at 4 bytes a position, takes at most half the memory of the bits, and is written as fast
# (benchmarks/swap.py).
SPARSE_DENSITY = 1 - 1 / 64
# A list as short as this takes less memory than an array object of its own, whatever the density.
SHORT_LIST = 32


@dataclass(frozen=True, eq=False)
class CompactMask:
    """Which weights of one mask are OFF, where theta lies.

    Attributes:
        off: ascending positions of listed OFF weights in a flat array of weights.
        bounds: `off[bounds[t]:bounds[t + 1]]` are those of tensor t.
        packed: by tensor, its packed bits, where it has too many OFF weights to list.
        scales: `1 / alpha` of every tensor, exactly 1 where a tensor is all ON.
        for_kernels: the same mask as the kernels read it, where there are kernels; `packed` then are views of its bits.
    """

    off: Int[Tensor, "n_off"]
    bounds: Int[ndarray, "n_tensors_and_1"]
    packed: Mapping[int, UInt8[Tensor, "n_bytes"]]
    scales: Float32[ndarray, "n_tensors"]
    for_kernels: KernelMask | None = None

    @property
    def nbytes(self) -> int:
        whole = self.for_kernels
        packed = whole.nbytes if whole is not None else sum(array.nbytes for array in self.packed.values())
        return self.off.nbytes + packed + int(self.bounds.nbytes + self.scales.nbytes)

    @cached_property
    def addresses(self) -> Int64[ndarray, "n_tensors"]:
        """Where the packed bits of every tensor lie in memory, as the compiled loop reads them; 0 where it has none."""
        places = (self.packed[t].data_ptr() if t in self.packed else 0 for t in range(len(self.scales)))
        return np.fromiter(places, np.int64)

    def off_of(self, tensor: int) -> Int[Tensor, "n"]:
        """The listed OFF positions of one tensor; none where it keeps bits."""
        return self.off[int(self.bounds[tensor]) : int(self.bounds[tensor + 1])]


def inverse_alphas(mask: TaskMask) -> Float32[ndarray, "n_tensors"]:
    """`1 / alpha` of every tensor in float32; exactly 1 where a tensor is all ON."""
    return (1.0 / mask.alphas.astype(np.float64)).astype(np.float32)


def positions_of(layout: Layout) -> np.dtype[Any]:
    """The type of listed positions."""
    return np.dtype(np.int32 if layout.n_elements < 2**31 else np.int64)


def make_compact(mask: TaskMask, device: torch.device, kernel_layout: KernelLayout | None = None) -> CompactMask:
    """Make the compact form of a mask; it keeps nothing of the mask itself.

    Args:
        kernel_layout: make what the kernels read, too.
    """
    lists: list[ndarray] = []
    packed: dict[int, Tensor] = {}
    counts = [0]
    kind = positions_of(mask.layout)
    whole = to_device(mask.packed, device) if kernel_layout is not None else None
    for index, (tensor, on) in enumerate(zip(mask.layout, mask.on_counts.tolist(), strict=True)):
        n_off = tensor.n_weights - on
        if n_off > max(SHORT_LIST, tensor.n_weights * (1 - SPARSE_DENSITY)):
            packed[index] = whole[tensor.bytes] if whole is not None else to_device(mask.packed[tensor.bytes], device)
            n_off = 0
        elif n_off:
            found = bits.off_positions(mask.packed[tensor.bytes], tensor.n_weights) + tensor.first_element
            lists.append(found.astype(kind))
        counts.append(n_off)
    off, bounds = np.concatenate(lists) if lists else np.zeros(0, kind), np.cumsum(counts).astype(kind)
    listed, scales = to_device(off, device), inverse_alphas(mask)
    if kernel_layout is None or whole is None:
        return CompactMask(listed, bounds, packed, scales)
    cuts = to_device(kernel_layout.find_cuts(off, bounds), device)
    return CompactMask(listed, bounds, packed, scales, KernelMask(whole, to_device(scales, device), listed, cuts))
