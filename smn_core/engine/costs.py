"""What each way to run a segment costs, in nanoseconds, and so which is taken.

Every way gives the same result; only time depends on this. The constants are measured on one thread by
`python -m benchmarks.engine --fit`, which prints this table anew; these were on a busy machine (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from numpy import ndarray

from smn_core.engine.compact import Resident
from smn_core.engine.sites import Site
from smn_core.layout import Layout


@dataclass(frozen=True)
class Costs:
    """Constants of one kind of device.

    Attributes:
        write: of theta', by weight of a slot.
        flip: of a patch, by OFF weight: once to clear it, and as much to undo it.
        rescale: of `1 / alpha` behind a convolution, by element of its output.
        segment, segment_weight: of a matrix product for one segment that one product for the batch saves: at all, and
            by weight, which is read and packed once more.
        correction, correction_row, correction_out: of a sparse correction: at all, by OFF weight and row, by element
            of the output.
    """

    write: float
    flip: float
    rescale: float
    segment: float
    segment_weight: float
    correction: float
    correction_row: float
    correction_out: float


CPU = Costs(
    write=0.57,
    flip=20.5,
    rescale=0.16,
    segment=41000.0,
    segment_weight=0.48,
    correction=6900.0,
    correction_row=1.9,
    correction_out=0.37,
)

# A patch is worn, and not a slot written, where it costs at most this part of the slot: a mask in a slot runs a plain
# forward, one in the shared array has to be put on again whenever another was there in between.
PATCH_SHARE = 0.5


def costs_for(device: torch.device, dtype: torch.dtype) -> Costs | None:
    """The constants where they were measured; elsewhere None, and every mask takes a slot."""
    return CPU if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) else None


def choose(bits: Resident, layout: Layout, sites: list[Site], moved: Bool[ndarray, "n_tensors"], costs: Costs) -> bool:
    """Decide tensor by tensor what a patch does; returns whether the mask is worn by a patch at all.

    Args:
        moved: filled in: the tensors whose `1 / alpha` is applied behind the product; the others are rewritten whole.
    """
    patch = slot = 0.0
    behind = {site.weight: site for site in sites if site.scalable and site.weight is not None}
    behind |= {site.bias: site for site in sites if site.scalable and site.bias is not None}
    for index, tensor in enumerate(layout):
        rewrite = costs.write * tensor.n_weights
        slot += rewrite
        if bits.scales[index] == 1:
            continue
        best = 2 * rewrite
        if index in behind and index not in bits.packed:
            flips = 2 * costs.flip * len(bits.off_of(index))
            site = behind[index]
            # The scale of a bias costs nothing where the bias is added.
            flips += costs.rescale * site.out_elements if index == site.weight and not site.is_linear else 0
            moved[index] = flips < best
            best = min(flips, best)
        patch += best
    return patch <= PATCH_SHARE * slot


def mixing_pays(sites: list[Site], layout: Layout) -> bool:
    """Whether one forward for a mixed batch is worth its splitting and joining: where linear layers prevail.

    In a network of convolutions and statistics nearly everything runs by segment anyway, and whole forwards keep a
    segment's activations in cache.
    """
    linear = sum(layout.tensors[site.weight].n_weights for site in sites if site.is_linear and site.weight is not None)
    return 2 * linear >= layout.n_weights


def base_pays(
    costs: Costs, n_rows: Int64[ndarray, "p"], n_weights: int, n_out: int, n_off: Int64[ndarray, "p"]
) -> Bool[ndarray, "p"]:
    """Whether segments of `n_rows` are cheaper as corrections of the shared product than as products of their own."""
    own = costs.segment + costs.segment_weight * n_weights + 2 * costs.flip * n_off
    shared = costs.correction + n_rows * (costs.correction_row * n_off + costs.correction_out * n_out)
    return shared < own
