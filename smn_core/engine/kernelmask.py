"""A mask as the kernels read it: all its bits, and a list of its OFF weights that is cut where a tile of outputs ends.

A kernel computes a linear layer in tiles of `TILE_OUT` outputs. The list is ordered by output, so the OFF weights of a
tile lie between two places in it: its cuts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from numpy import ndarray
from torch import Tensor

from smn_core.layout import Layout

# Outputs of a linear layer that one program computes: the kernels' tile, and so the distance of the cuts.
TILE_OUT = 64


@dataclass(frozen=True)
class KernelCosts:
    """Costs of one tile of rows, in nanoseconds of a whole device; only their ratio decides.

    Attributes:
        unpack: to read and unpack the bits, by weight of the layer.
        entry: to correct by the list, by OFF weight.
    """

    unpack: float
    entry: float


# Not measured: `python -m benchmarks.gpu --fit` does it where there is a GPU. An OFF weight costs one more column of
# the product, its inputs gathered row by row (taken for four columns); unpacking costs each column about as much again.
CUDA = KernelCosts(unpack=3e-4, entry=0.077)


def list_pays(costs: KernelCosts, n_weights: int, n_off: int) -> bool:
    """Whether a linear layer with so many listed OFF weights is read from the list."""
    return costs.entry * n_off < costs.unpack * n_weights


@dataclass(frozen=True)
class KernelLayout:
    """Where a mask's `cuts` hold those of each linear weight of a layout, and when a list is used at all."""

    layout: Layout
    costs: KernelCosts

    @cached_property
    def first_cut(self) -> Mapping[int, int]:
        """By index of the tensor in the layout."""
        found, at = {}, 0
        for index, tensor in enumerate(self.layout):
            if len(tensor.shape) == 2:
                found[index] = at
                at += count_tiles(tensor.shape[0]) + 1
        return found

    @property
    def n_cuts(self) -> int:
        return sum(count_tiles(self.layout.tensors[index].shape[0]) + 1 for index in self.first_cut)

    def find_cuts(self, off: ndarray, bounds: ndarray) -> Int32[ndarray, "n_cuts"]:
        """Where in `off` the OFF weights of every tile of outputs begin and end; equal where the list does not pay.

        `off` and `bounds` are those of `CompactMask`.
        """
        cuts = np.zeros(self.n_cuts, np.int32)
        for index, at in self.first_cut.items():
            first, last = int(bounds[index]), int(bounds[index + 1])
            tensor = self.layout.tensors[index]
            n_out, n_in = tensor.shape
            n = count_tiles(n_out)
            cuts[at : at + n + 1] = first
            if list_pays(self.costs, tensor.n_weights, last - first):
                edges = tensor.first_element + n_in * np.minimum(np.arange(n + 1) * TILE_OUT, n_out)
                cuts[at : at + n + 1] += np.searchsorted(off[first:last], edges).astype(np.int32)
        return cuts


@dataclass(frozen=True, eq=False)
class KernelMask:
    """One mask on the device: its packed bits in layout order, `1 / alpha` by tensor, listed OFF positions, their cuts.

    The kernels read a linear weight from its packed bits where all its cuts are equal and its scale is not 1.
    """

    packed: UInt8[Tensor, "n_bytes"]
    scales: Float32[Tensor, "n_tensors"]
    off: Int32[Tensor, "n_off"]
    cuts: Int32[Tensor, "n_cuts"]

    @cached_property
    def addresses(self) -> tuple[int, int, int, int]:
        """Of the four arrays, in the order that the kernels' table has them."""
        return self.packed.data_ptr(), self.scales.data_ptr(), self.off.data_ptr(), self.cuts.data_ptr()

    @property
    def nbytes(self) -> int:
        """Without `off`, which `CompactMask` shares and counts."""
        return self.packed.nbytes + self.scales.nbytes + self.cuts.nbytes


def count_tiles(n_out: int) -> int:
    return -(-n_out // TILE_OUT)
