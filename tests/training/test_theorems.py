"""A mask depends on lr / (S0 - mu) and on nothing else of the three: docs/method.md, "Theorems".

The tests take real steps with momentum.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.builders import World, mask_bits, plain_lr, run

CASES = [("test_vit", "swav"), ("test_vit", "supervised"), ("test_resnet", "swav")]


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_the_scale_of_scores_and_learning_rate_changes_no_bit(name, objective, world: World, tmp_path):
    one = run(world, tmp_path / "1.smn", plain_lr(1, 0, 200, objective), name).mask
    two = run(world, tmp_path / "2.smn", plain_lr(2, 0, 400, objective), name).mask
    assert 0.5 < one.density < 0.999
    np.testing.assert_array_equal(one.packed, two.packed)


@pytest.mark.parametrize(("name", "objective"), CASES[:2])
def test_scores_and_threshold_may_be_moved_together(name, objective, world: World, tmp_path):
    """Rounding differs, and what is a hair from the threshold may fall on either side."""
    one = mask_bits(run(world, tmp_path / "1.smn", plain_lr(1, 0, 200, objective), name).mask)
    two = mask_bits(run(world, tmp_path / "2.smn", plain_lr(2.5, 0.5, 400, objective), name).mask)
    moved = mask_bits(run(world, tmp_path / "4.smn", plain_lr(1.75, 0.75, 200, objective), name).mask)
    other = mask_bits(run(world, tmp_path / "3.smn", plain_lr(1, 0, 400, objective), name).mask)
    assert (one != two).mean() < 0.002
    assert (one != moved).mean() < 0.002
    assert (one != other).mean() > 0.01
