"""Probabilities of a classifier are scikit-learn's, and the most probable class comes first."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from smn_core.labels import most_probable, probabilities
from smn_core.mask import Head


def test_probabilities_are_scikit_learns_and_huge_embeddings_overflow_nothing():
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((60, 5)).astype(np.float32), np.arange(60) % 4
    model = LogisticRegression().fit(z, labels)
    head = Head(model.coef_.astype(np.float32), model.intercept_.astype(np.float32), tuple("abcd"))
    np.testing.assert_allclose(probabilities(head, z), model.predict_proba(z), atol=1e-6)
    huge = probabilities(head, np.full((1, 5), 3e38, np.float32))
    assert np.isfinite(huge).all() and abs(huge.sum() - 1) < 1e-9


def test_the_most_probable_classes_come_in_order_and_equal_ones_as_the_file_has_them():
    p = np.array([[0.1, 0.5, 0.4], [0.4, 0.2, 0.4]])
    assert most_probable(p).tolist() == [[1, 2, 0], [0, 2, 1]]
    assert most_probable(p, 1).tolist() == [[1], [0]]
    assert most_probable(p, 9).tolist() == most_probable(p).tolist()
