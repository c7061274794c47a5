"""kNN and linear probe follow docs/method.md, "Evaluation protocol"."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation import probes


def naive_knn(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, n_classes: int, k: int) -> list[int]:
    """One query at a time: the k highest cosines vote exp(similarity / 0.1)."""
    found = []
    for query in queries:
        similar = bank @ query / (np.linalg.norm(bank, axis=1) * np.linalg.norm(query))
        votes = np.zeros(n_classes)
        for i in np.argsort(-similar)[:k]:
            votes[labels[i]] += np.exp(similar[i] / 0.1)
        found.append(int(votes.argmax()))
    return found


@pytest.mark.parametrize("n_bank", [7, 300])
def test_knn_equals_the_naive_vote(n_bank, rng):
    bank, queries = (rng.standard_normal((n, 8), np.float32) for n in (n_bank, 50))
    labels = rng.integers(0, 5, n_bank)
    k = min(20, n_bank)
    assert probes.knn(bank, labels, queries).tolist() == naive_knn(bank, labels, queries, 5, k)


def test_knn_does_not_see_lengths(rng):
    bank, queries, labels = (
        rng.standard_normal((60, 8), np.float32),
        rng.standard_normal((9, 8), np.float32),
        rng.integers(0, 3, 60),
    )
    lengths = rng.random((60, 1), np.float32) + 0.5
    np.testing.assert_array_equal(probes.knn(bank, labels, queries), probes.knn(bank * lengths, labels, 4 * queries))


@pytest.mark.parametrize(("n_bank", "k"), [(5, 5), (20, 20), (4999, 20), (5000, 200)])
def test_k_is_200_and_less_where_the_bank_is_small(n_bank, k):
    assert probes.choose_k(n_bank) == k


def test_the_probe_is_perfect_where_classes_can_be_parted(rng):
    labels = rng.integers(0, 3, 90)
    z = np.eye(3, 6, dtype=np.float32)[labels] * 4 + 0.1 * rng.standard_normal((90, 6), np.float32)
    assert probes.accuracy(probes.linear(z[:60], labels[:60], z[60:]), labels[60:]) == 1.0


def test_the_probe_predicts_class_numbers_that_have_gaps(rng):
    labels = np.array([2, 7] * 20)
    z = (labels[:, None] - 4 + 0.1 * rng.standard_normal((40, 3))).astype(np.float32)
    assert set(probes.linear(z, labels, z)) == {2, 7}


def test_one_class_needs_no_probe(rng):
    z = rng.standard_normal((6, 3), np.float32)
    assert probes.linear(z, np.full(6, 4), z).tolist() == [4] * 6
