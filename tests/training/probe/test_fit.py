"""A linear classifier is scikit-learn's on standardised features, folded into weights for plain embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from smn_core.errors import InvalidData
from smn_core.labels import probabilities
from training.probe.fit import MOST_ITERATIONS, STRENGTHS, calibration_error, choose_strength, fit_head


def draw(n_classes: int, n: int = 60, d: int = 8, apart: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n * n_classes) % n_classes
    middles = rng.normal(0, apart, (n_classes, d))
    z = (middles[labels] + rng.normal(0, 1, (len(labels), d))) * np.logspace(-2, 2, d) + 5
    return z.astype(np.float32), labels


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_labels_and_probabilities_are_those_of_scikit_learn(n_classes):
    z, labels = draw(n_classes)
    found = fit_head(z, labels, [f"c{i}" for i in range(n_classes)])
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=found.strength, max_iter=MOST_ITERATIONS))
    theirs.fit(z.astype(np.float64), labels)
    ours = probabilities(found.head, z)
    assert (ours.argmax(1) == theirs.predict(z)).all()
    np.testing.assert_allclose(ours, theirs.predict_proba(z), atol=1e-4)
    assert found.head.weight.shape == (n_classes, 8)


def test_the_held_out_accuracy_is_that_of_new_rows():
    z, labels = draw(4, n=200, apart=0.7)
    found = fit_head(z, labels, list("abcd"))
    fresh, known = draw(4, n=2000, apart=0.7)
    fresh, known = fresh[800:], known[800:]
    right = (probabilities(found.head, fresh).argmax(1) == known).mean()
    assert found.accuracy == pytest.approx(right, abs=0.08)
    assert found.n_held_out == 160
    assert 0 <= found.calibration_error < 0.15


def test_noise_is_fitted_with_the_strongest_regularisation():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(120, 30)).astype(np.float32)
    assert choose_strength(z, rng.integers(0, 3, 120)) == STRENGTHS[0]


def test_a_class_without_images_is_not_in_the_classifier():
    z, labels = draw(2)
    found = fit_head(z, labels * 2, ["a", "empty", "b"])
    assert found.head.classes == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "says"), [([0] * 40, "two classes"), ([0] * 36 + [1] * 4, "class b has 4 readable images")]
)
def test_too_few_labels_are_refused(labels, says):
    with pytest.raises(InvalidData, match=says):
        fit_head(draw(1, n=40)[0], np.array(labels), ["a", "b"])


def test_calibration_error_is_the_distance_of_confidence_and_accuracy():
    sure = np.array([[0.9, 0.1]] * 10)
    assert calibration_error(sure, np.array([0] * 9 + [1])) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(sure, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.4)
