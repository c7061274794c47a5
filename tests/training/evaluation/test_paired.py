"""Signs of single images, and paired changes, have the values that known spaces must have."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.paired import (
    AGREEMENT,
    MARGIN,
    MOST_Z,
    NEIGHBOURS,
    Measured,
    Pool,
    compare,
    find_collapse,
    find_own,
    measure,
    share_neighbours,
    weigh,
)


def pool(rng: np.random.Generator, noise: float, n: int = 60, d: int = 16) -> Pool:
    z = rng.standard_normal((n, d))
    a, b, c, e = ((z + noise * rng.standard_normal((n, d))).astype(np.float32) for _ in range(4))
    return Pool((a, b), (c, e))


def test_a_change_is_the_mean_of_differences_with_its_standard_error(rng):
    before, after = rng.random(50), rng.random(50)
    found = compare(before, after)
    apart = after - before
    assert (found.before, found.after, found.n) == (before.mean(), after.mean(), 50)
    assert found.change == pytest.approx(apart.mean())
    assert found.error == pytest.approx(np.sqrt(((apart - apart.mean()) ** 2).sum() / 49 / 50))
    assert found.z == pytest.approx(apart.mean() / found.error)


def test_evidence_adds_the_changes_of_margin_and_neighbours_each_in_its_deviations(rng):
    before = Measured({MARGIN: rng.random(40), NEIGHBOURS: rng.random(40)}, 9.0, "")
    gains = {MARGIN: rng.normal(0.5, 2, 40), NEIGHBOURS: rng.normal(-0.1, 0.1, 40)}
    after = Measured({sign: before.signs[sign] + gains[sign] for sign in gains}, 9.0, "")
    expected = gains[MARGIN] / gains[MARGIN].std() + gains[NEIGHBOURS] / gains[NEIGHBOURS].std()
    np.testing.assert_allclose(weigh(before, after), expected)
    assert not weigh(before, before).any()
    shifted = Measured({MARGIN: before.signs[MARGIN], NEIGHBOURS: before.signs[NEIGHBOURS] + 0.5}, 9.0, "")
    np.testing.assert_allclose(weigh(before, shifted), np.ones(40))


def test_four_images_that_change_alike_are_two_standard_errors():
    before, after = np.zeros(200), np.zeros(200)
    after[:4] = 1
    assert compare(before, after).z == pytest.approx(2, abs=0.02)


def test_no_change_has_z_0_and_the_same_change_everywhere_a_finite_one(rng):
    before = rng.random(20)
    assert compare(before, before).z == 0
    assert compare(np.zeros(20), np.ones(20)).z == MOST_Z
    assert compare(np.ones(1), np.zeros(1)).z == -MOST_Z


def test_own_views_are_found_on_the_diagonal():
    found = find_own(np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.4], [0.0, 0.1, 0.7]]))
    np.testing.assert_array_equal(found[AGREEMENT], [1, 0, 1])
    np.testing.assert_allclose(found[MARGIN], [0.4 / 0.2, -0.6 / 0.2, 0.6 / 0.05])


def test_the_margin_does_not_see_the_scale_of_similarities(rng):
    similar = rng.random((30, 30))
    np.testing.assert_allclose(find_own(similar)[MARGIN], find_own(0.1 * similar + 3)[MARGIN])


def test_less_noise_between_views_is_more_of_every_sign(rng):
    noisy, clean = measure(pool(rng, 1.5)), measure(pool(rng, 0.3))
    for sign in (AGREEMENT, MARGIN, NEIGHBOURS):
        assert compare(noisy.signs[sign], clean.signs[sign]).z > 3


def test_shared_neighbours_are_all_of_the_same_view_and_chance_of_another(rng):
    a, b = rng.standard_normal((200, 6), np.float32), rng.standard_normal((200, 6), np.float32)
    np.testing.assert_array_equal(share_neighbours(a, a), 1.0)
    assert share_neighbours(a, b).mean() == pytest.approx(20 / 199, abs=0.03)


def test_collapsed_spaces_are_found(rng):
    frozen = measure(pool(rng, 0.3))
    assert find_collapse(frozen, frozen) == ""
    line = rng.standard_normal((60, 1)).astype(np.float32) * np.ones((60, 16), np.float32)
    assert "effective rank" in find_collapse(frozen, measure(Pool((line, line), (line, line))))
    point = np.full((60, 16), 0.3, np.float32)
    assert "equal" in find_collapse(frozen, measure(Pool((point, point), (point, point))))
    broken = line.copy()
    broken[3, 4] = np.nan
    assert "not finite" in find_collapse(frozen, measure(Pool((line, line), (line, broken))))
