"""The form in which the engine keeps a mask: small, and the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smn_core.engine.compact import SPARSE_DENSITY, make_compact
from smn_core.mask import TaskMask
from tests.smn_core.builders import KINDS, lively, random_mask
from tests.smn_core.engine.test_apply import layout_named


def kept(mask: TaskMask):
    return make_compact(mask, torch.device("cpu"))


@pytest.mark.parametrize("density", [0.05, 0.9, 0.97, 0.99, 0.9999, 1.0])
def test_the_form_lists_exactly_the_off_weights(density):
    """Every tensor's OFF weights are in its list or in its bits, nowhere else."""
    layout = layout_named("test_vit")
    mask = random_mask(layout, density, 1)
    found = kept(mask)
    for index, tensor in enumerate(layout):
        off = np.flatnonzero(~mask.bits_of(tensor.name))
        if index in found.packed:
            assert np.array_equal(found.packed[index].numpy(), mask.packed[tensor.bytes])
            assert len(found.off_of(index)) == 0
        else:
            assert np.array_equal(found.off_of(index).numpy() - tensor.first_element, off)


def test_few_off_weights_are_a_list_and_many_are_bits():
    """Above the threshold a large tensor keeps positions, below it bits."""
    layout = layout_named("test_resnet")
    large = max(range(len(layout.tensors)), key=lambda i: layout.tensors[i].n_weights)
    few, many = (kept(random_mask(layout, d, 1)) for d in (SPARSE_DENSITY + 0.005, SPARSE_DENSITY - 0.05))
    assert large not in few.packed
    assert large in many.packed


@pytest.mark.parametrize("density", [0.05, 0.5, 0.97, 0.99])
def test_a_mask_takes_hardly_more_than_its_bits(density):
    """Whatever the density, the form takes at most 1.05 of one bit a weight."""
    layout = layout_named("resnet18")
    assert kept(random_mask(layout, density, 1)).nbytes <= 1.05 * layout.n_weights / 8


def test_a_mask_of_density_9995_takes_16_kb_on_a_vit_tiny():
    """What ViTs' masks are like takes kilobytes."""
    assert kept(random_mask(layout_named("vit_tiny_patch16_224"), 0.9995, 1)).nbytes <= 16 * 1024


def test_the_form_keeps_nothing_of_the_mask(make_mask):
    """The mask's own array can be freed: nothing in the form is a view of it."""
    mask = make_mask(lively(KINDS["resnet"]), 0.5)
    assert not any(np.shares_memory(part.numpy(), mask.packed) for part in kept(mask).packed.values())
