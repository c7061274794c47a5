"""A linear map moves an index to another space: exact where the spaces are linear in each other, harmless where not."""

from __future__ import annotations

import numpy as np
import pytest

from smn_core.errors import InvalidData
from training.translate.ridge import fit_ridge, recall_at, translate


def draw(n: int, d: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, 1.0, (n, d)).astype(np.float32)


def test_a_linear_change_of_space_is_found():
    old = draw(400)
    turn = np.linalg.qr(draw(12, 12, 1))[0].astype(np.float32)
    new = (old @ turn.T + 3).astype(np.float32)
    found = translate(old[:300], new[:300], old[300:], new[300:])
    np.testing.assert_allclose(found.map.apply(old[300:]), new[300:], atol=1e-2)
    assert found.recall > 0.99
    assert found.recall_untouched < 0.5
    assert (found.n_fitted, found.n_held_out) == (300, 100)


@pytest.mark.parametrize("unit", [1.0, 0.02, 50.0])
def test_a_strong_penalty_leaves_directions_as_they_are_but_for_the_mean(unit):
    old, new = draw(50), unit * draw(50, seed=1)
    spread = [float(np.linalg.norm(z - z.mean(0))) for z in (old, new)]
    found = fit_ridge(old, new, 1e9)
    np.testing.assert_allclose(found.matrix / unit, np.eye(12) * spread[1] / spread[0] / unit, atol=1e-5)
    np.testing.assert_allclose(found.apply(old).mean(0), new.mean(0), rtol=1e-4)


def test_the_unit_of_a_space_changes_neither_the_strength_nor_what_is_found():
    old = draw(300)
    turn = np.linalg.qr(draw(12, 12, 1))[0].astype(np.float32)
    new = (old @ turn.T + draw(300, seed=2)).astype(np.float32)
    found = [translate(old[:200], u * new[:200], old[200:], u * new[200:]) for u in (1.0, 1 / 64)]
    assert found[0].strength == found[1].strength
    assert found[0].recall == found[1].recall > found[0].recall_untouched


def test_spaces_without_relation_are_not_mistaken_for_related():
    found = translate(draw(200), draw(200, seed=1), draw(100, seed=2), draw(100, seed=3))
    assert found.recall < 0.3


def test_recall_counts_the_true_neighbours_that_an_index_finds():
    new = draw(40)
    assert recall_at(new, new) == 1.0
    assert recall_at(new, new[::-1].copy()) < 0.6


@pytest.mark.parametrize(("n", "held"), [(19, 50), (50, 11)])
def test_too_few_images_are_refused_with_both_counts_and_what_each_takes(n, held):
    says = f"{n} to fit a map between spaces on, which takes 20, and {held} to measure recall@10 on, which takes 12$"
    with pytest.raises(InvalidData, match=says):
        translate(draw(n), draw(n), draw(held), draw(held))
