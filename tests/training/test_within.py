"""The map within images is the closed form that docs/method.md states."""

from __future__ import annotations

import numpy as np
import pytest

from smn_core.errors import InvalidArgument, InvalidData
from training.within import fit_diagonal, fit_within, scatter_within

D = 5


def views_of(rng: np.random.Generator, noise: np.ndarray, n_images: int = 400, n_views: int = 3) -> np.ndarray:
    """Images a unit apart, whose views scatter by `noise [d]` in every feature."""
    images = rng.standard_normal((1, n_images, D))
    return (images + rng.standard_normal((n_views, n_images, D)) * noise).astype(np.float32)


def test_the_scatter_is_that_of_the_views_and_not_of_the_images(rng):
    noise = np.array([2.0, 1.0, 0.5, 0.25, 0.1])
    found = scatter_within(views_of(rng, noise, 4000))
    np.testing.assert_allclose(np.diag(found), noise**2, rtol=0.1)
    slowly = np.mean([np.cov(image.T) for image in views_of(np.random.default_rng(1), noise, 50).swapaxes(0, 1)], 0)
    np.testing.assert_allclose(scatter_within(views_of(np.random.default_rng(1), noise, 50)), slowly, rtol=1e-4)


def test_full_power_without_shrinking_makes_the_scatter_within_images_round(rng):
    views = views_of(rng, np.array([2.0, 1.0, 0.5, 0.25, 0.1]))
    affine = fit_within(views, views.mean((0, 1)), power=1.0, shrink=0.0)
    mapped = scatter_within(np.stack([affine.apply(view) for view in views]))
    np.testing.assert_allclose(mapped, np.eye(D) * np.trace(mapped) / D, atol=1e-3 * float(mapped[0, 0]))


def test_without_power_the_map_only_centres_and_brings_embeddings_to_length_1(rng):
    views = views_of(rng, np.ones(D))
    mean = views.mean((0, 1))
    length = np.linalg.norm(views - mean, axis=2).mean()
    mapped = fit_within(views, mean, power=0.0).apply(views[0])
    np.testing.assert_allclose(mapped, (views[0] - mean) / length, atol=1e-5)


@pytest.mark.parametrize("times", [0.01, 1, 100])
def test_either_form_gives_embeddings_of_length_1_in_the_mean(times, rng):
    views = times * views_of(rng, np.array([4.0, 1.0, 1.0, 1.0, 0.1]))
    within = fit_within(views, views.mean((0, 1)))
    assert np.linalg.norm(within.apply(views.reshape(-1, D)), axis=1).mean() == pytest.approx(1, rel=1e-4)
    assert np.linalg.norm(fit_diagonal(views[0]).apply(views[0]), axis=1).mean() == pytest.approx(1, rel=1e-4)


def test_the_noisy_directions_shrink_and_the_quiet_ones_grow(rng):
    views = views_of(rng, np.array([4.0, 1.0, 1.0, 1.0, 0.1]))
    scales = np.diag(fit_within(views, views.mean((0, 1))).full)
    assert scales[0] < scales[1:4].min() <= scales[1:4].max() < scales[4]


def test_few_images_give_a_finite_map(rng):
    """Four images have less scatter than dimensions: the shrinking fills what they do not tell."""
    views = views_of(rng, np.ones(D), n_images=1)
    assert np.isfinite(fit_within(views, views.mean((0, 1))).full).all()


def test_the_diagonal_map_standardises_the_features_that_vary(rng):
    z = (rng.standard_normal((300, D)) * [10, 1, 0.1, 1, 0] + 3).astype(np.float32)
    mapped = fit_diagonal(z).apply(z)
    deviation = mapped.std(0)
    np.testing.assert_allclose(deviation[:4], deviation[0], rtol=1e-3)
    np.testing.assert_allclose(mapped.mean(0)[:4], 0, atol=1e-3)
    assert deviation[4] == pytest.approx(0, abs=1e-5)


def test_what_cannot_be_fitted_is_one_clear_error(rng):
    same = np.ones((3, 10, D), np.float32)
    with pytest.raises(InvalidData, match="equal embeddings"):
        fit_within(same, same[0, 0])
    with pytest.raises(InvalidArgument, match="two views"):
        fit_within(same[:1], same[0, 0])
    with pytest.raises(InvalidArgument, match=r"\[0, 1\]"):
        fit_within(views_of(rng, np.ones(D)), np.zeros(D, np.float32), power=2.0)
    with pytest.raises(InvalidData, match="equal"):
        fit_diagonal(np.ones((4, D), np.float32))
