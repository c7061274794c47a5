"""Signs without labels have the values that known spaces must have."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation import signs


def spectrum(values: list[float], n: int, rng: np.random.Generator) -> np.ndarray:
    """Centred rows with these singular values."""
    rows = rng.standard_normal((n, len(values)))
    left = np.linalg.qr(rows - rows.mean(0))[0]
    return (left * values).astype(np.float32)


@pytest.mark.parametrize(("values", "rank"), [([3.0], 1.0), ([2.0] * 4, 4.0), ([1.0, 1.0, 1e-9], 2.0)])
def test_effective_rank_counts_equal_directions(values, rank, rng):
    assert signs.effective_rank(spectrum(values, 40, rng)) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_does_not_see_the_mean(rng):
    z = spectrum([3.0, 1.0], 40, rng)
    assert signs.effective_rank(z + np.float32(5)) == pytest.approx(signs.effective_rank(z), rel=1e-3)


def test_effective_rank_of_a_collapsed_space_is_one():
    assert signs.effective_rank(np.ones((10, 4), np.float32)) == pytest.approx(1.0)


def test_views_that_are_alike_agree_and_shuffled_ones_do_not(rng):
    z = rng.standard_normal((30, 16), np.float32)
    assert signs.view_agreement(z, z + 0.01) == 1.0
    assert signs.view_agreement(z, np.roll(z, 1, axis=0)) == 0.0


def test_neighbours_are_the_nearest_others(rng):
    z = rng.standard_normal((25, 4), np.float32)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    similar = unit @ unit.T - 2 * np.eye(25)
    for row, found in enumerate(signs.neighbours(z, 5)):
        assert set(found) == set(np.argsort(-similar[row])[:5])


def test_a_space_keeps_all_neighbours_of_itself_and_of_a_rotation(rng):
    z = rng.standard_normal((40, 6), np.float32)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0].astype(np.float32)
    assert signs.neighbours_kept(z, z) == 1.0
    assert signs.neighbours_kept(z, z @ turn * 3) == pytest.approx(1.0, abs=0.01)


def test_unrelated_spaces_share_neighbours_by_chance(rng):
    a, b = rng.standard_normal((400, 6), np.float32), rng.standard_normal((400, 6), np.float32)
    assert signs.neighbours_kept(a, b, k=10) == pytest.approx(10 / 399, abs=0.02)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_images_are_no_error(n, rng):
    z = rng.standard_normal((n, 3), np.float32)
    assert 0 <= signs.neighbours_kept(z, z) <= 1
    assert signs.effective_rank(z) >= 1 - 1e-6
    assert signs.view_agreement(z, z) == 1.0
