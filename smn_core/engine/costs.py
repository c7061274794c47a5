"""What each way to run a mask costs, in nanoseconds, and so which way is taken.

Every way gives the same embeddings; only time depends on the choice. `python -m benchmarks.engine --fit` measures the
constants on one thread, along the code that the engine itself runs, and prints them anew. Those below are means of
four fits, which agree within a tenth but for `correction_out` (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy import ndarray

from smn_core.engine.compact import CompactMask
from smn_core.engine.sites import Site
from smn_core.layout import Layout


@dataclass(frozen=True)
class Costs:
    """Constants of one kind of device.

    Attributes:
        write: to write one weight of a slot.
        scratch: to write one weight where it is used (scratch.py).
        flip: to set one OFF weight to 0 in the shared array; as much again to undo it.
        rescale: to multiply one element of a convolution's output by `1 / alpha`.
        segment: what a product for one segment costs more than its part of one product for the whole batch.
        segment_weight: the same, by weight of the layer: a product of its own reads and packs the weights once more.
        correction: to correct the output of the shared product for one segment, before the first row.
        correction_row: the same, by OFF weight and row.
        correction_out: the same, by element of the output.
    """

    write: float
    scratch: float
    flip: float
    rescale: float
    segment: float
    segment_weight: float
    correction: float
    correction_row: float
    correction_out: float


CPU = Costs(
    write=0.154,
    scratch=0.131,
    flip=9.2,
    rescale=0.064,
    segment=10000.0,
    segment_weight=0.238,
    correction=2480.0,
    correction_row=1.0,
    correction_out=0.15,
)

# A mask is a patch where that costs at most this part of writing a slot. A slot is written once and then runs a plain
# forward; a patch has to be put on again whenever another mask was worn in between.
PATCH_SHARE = 0.5
ROWS_ALONE, ROWS_ALONE_UNCORRECTED = 200, 150
"""Rows of a span in the linear layers from which on a forward of its own costs no more than its part of a mixed one:
in general, and of a patch where the shared product is not corrected, so that it is put on again at every layer."""


@dataclass(frozen=True, eq=False)
class Choice:
    """How a mask is worn: as a patch, or in a slot.

    Of a patch, `moved` says for which tensors `1 / alpha` is applied to the layer's output and the OFF weights alone
    change in the shared array; a patch writes all weights of the other tensors.
    """

    patched: bool
    moved: Bool[ndarray, "n_tensors"]


def costs_for(device: torch.device, dtype: torch.dtype) -> Costs | None:
    """The constants where they were measured; elsewhere None, and every mask takes a slot."""
    return CPU if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) else None


def choose(compact: CompactMask, layout: Layout, sites: list[Site], costs: Costs) -> Choice:
    """Find for every tensor the cheaper way to patch it; then compare the patch with a slot."""
    moved = np.zeros(len(layout.tensors), bool)
    patch = slot = 0.0
    movable = {site.weight: site for site in sites if site.scalable and site.weight is not None}
    movable |= {site.bias: site for site in sites if site.scalable and site.bias is not None}
    for index, tensor in enumerate(layout):
        rewrite = costs.write * tensor.n_weights
        slot += rewrite
        if compact.scales[index] == 1:
            continue
        best = 2 * rewrite
        if index in movable and index not in compact.packed:
            flips = 2 * costs.flip * len(compact.off_of(index))
            site = movable[index]
            # A linear layer scales inside its product, and a bias is scaled where it is added: both cost nothing.
            flips += costs.rescale * site.out_elements if index == site.weight and not site.is_linear else 0
            moved[index] = flips < best
            best = min(flips, best)
        patch += best
    return Choice(patch <= PATCH_SHARE * slot, moved)


def mixing_pays(sites: list[Site], layout: Layout) -> bool:
    """Whether a batch that mixes masks is worth splitting and joining at every module: where linear layers prevail.

    In a network of convolutions and statistics nearly everything runs by segment anyway, and a whole forward for each
    segment keeps its activations in cache.
    """
    linear = sum(layout.tensors[site.weight].n_weights for site in sites if site.is_linear and site.weight is not None)
    return 2 * linear >= layout.n_weights


def rows_of_image(sites: list[Site], layout: Layout) -> float:
    """Rows that one image makes in the linear layers: their mean, by weights."""
    linear = [(layout.tensors[site.weight], site) for site in sites if site.is_linear and site.weight is not None]
    products = sum(site.out_elements * tensor.shape[1] for tensor, site in linear)
    return products / max(1, sum(tensor.n_weights for tensor, _ in linear))


def forward_pays(n_rows: float, patched: bool, corrected: bool) -> bool:
    """Whether a span of a mixed batch, of so many rows in the linear layers, runs in a forward of its own.

    Its products are then as fast as those of the whole batch, activations run within them, and nothing is corrected,
    split or joined.

    Args:
        patched: whether its mask is a patch or the root.
        corrected: whether mixed batches correct a shared product (correction.py).
    """
    return n_rows >= (ROWS_ALONE_UNCORRECTED if patched and not corrected else ROWS_ALONE)


def slot_pays(costs: Costs) -> bool:
    """Whether writing a slot for a mask of a mixed batch costs less than writing its weights where they are used."""
    return costs.write < costs.scratch


def flips_pay(costs: Costs, n_weights: int, n_off: int) -> bool:
    """Whether a product of a patch's own takes its weights from the shared array, or they are written where used."""
    return 2 * costs.flip * n_off < costs.scratch * n_weights


def base_pays(
    costs: Costs,
    n_rows: Int64[ndarray, "p"],
    n_weights: int,
    n_out: int,
    n_off: Int64[ndarray, "p"],
    scratch: bool = False,
) -> Bool[ndarray, "p"]:
    """For each of p spans, whether correcting the shared product costs less than a product of its own.

    Args:
        n_rows: rows of every span that the layer gets.
        n_weights, n_out: weights and outputs of the layer.
        n_off: OFF weights of the layer that every span's mask lists.
        scratch: whether weights can be written where they are used.
    """
    written = costs.scratch * n_weights if scratch else np.inf
    own = costs.segment + costs.segment_weight * n_weights + np.minimum(2 * costs.flip * n_off, written)
    shared = costs.correction + n_rows * (costs.correction_row * n_off + costs.correction_out * n_out)
    return shared < own
