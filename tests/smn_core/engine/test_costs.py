"""A mask is a patch where that costs less than its slot, tensor by tensor in the cheaper way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from smn_core.engine import Engine
from smn_core.engine.compact import make_compact
from smn_core.engine.costs import CPU, choose, forward_pays, rows_of_image
from smn_core.engine.sites import sites_of
from tests.smn_core.builders import TINY_VIT, lively


def chosen(backbone, mask, costs=CPU):
    return choose(
        make_compact(mask, torch.device("cpu")), backbone.layout, sites_of(backbone.model, backbone.layout), costs
    )


def test_a_sparse_mask_is_a_patch_and_a_dense_one_takes_a_slot(make_mask):
    """Which it is depends on the costs alone: where flips cost nothing, all that is listed is patched."""
    backbone = lively(TINY_VIT)
    assert chosen(backbone, make_mask(backbone, 0.9999)).patched
    assert not chosen(backbone, make_mask(backbone, 0.5)).patched
    free, dear = replace(CPU, flip=0.0, rescale=0.0), replace(CPU, flip=1e9)
    assert chosen(backbone, make_mask(backbone, 0.99), free).patched
    assert not chosen(backbone, make_mask(backbone, 0.99), dear).patched


def test_only_listed_tensors_are_scaled_behind_the_product(make_mask):
    """A tensor that keeps its bits, or that is all ON, is never among the moved ones."""
    backbone = lively(TINY_VIT)
    mask = make_mask(backbone, 0.9)
    compact = make_compact(mask, torch.device("cpu"))
    moved = chosen(backbone, mask, replace(CPU, flip=0.0, rescale=0.0)).moved
    listed = np.array([i not in compact.packed and s != 1 for i, s in enumerate(compact.scales)])
    assert compact.packed
    assert moved.any()
    assert np.array_equal(moved, listed)


def test_a_span_runs_alone_from_so_many_rows_on():
    """A patch has a number of its own where shared products are not corrected."""
    assert [forward_pays(rows, patched, corrected=True) for rows in (199, 200) for patched in (True, False)] == [
        False, False, True, True,
    ]  # fmt: skip
    assert [forward_pays(rows, patched=True, corrected=False) for rows in (149, 150)] == [False, True]
    assert [forward_pays(rows, patched=False, corrected=False) for rows in (199, 200)] == [False, True]


def test_an_image_makes_a_row_for_each_token_and_none_without_linear_layers():
    backbone = lively(TINY_VIT)
    engine = Engine(backbone)
    tokens = backbone.model.patch_embed.num_patches + 1
    assert rows_of_image(engine._theta.sites, backbone.layout) == tokens
    assert rows_of_image([], backbone.layout) == 0
