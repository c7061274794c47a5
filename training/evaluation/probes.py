"""Score embeddings with labels, by kNN and by a linear probe: docs/method.md, "Evaluation protocol"."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float32, Int64
from lightly.utils.benchmarking import knn_predict
from numpy import ndarray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from training.evaluation.signs import normalise

KNN_TEMPERATURE = 0.1
PROBE_C = 100.0
PROBE_ITERATIONS = 2000
QUERIES_AT_ONCE = 1000


def choose_k(n_bank: int) -> int:
    """k of the kNN classifier: 200, or 20 where the bank has under 5,000 images; never more than the bank has."""
    return min(200 if n_bank >= 5000 else 20, n_bank)


def knn(
    bank: Float32[ndarray, "n d"], bank_labels: Int64[ndarray, "n"], queries: Float32[ndarray, "m d"]
) -> Int64[ndarray, "m"]:
    """Predicted labels: votes of the k nearest by cosine, weighted exp(similarity / T)."""
    feature_bank = torch.from_numpy(normalise(bank)).T.contiguous()
    labels, k, n_classes = torch.from_numpy(bank_labels), choose_k(len(bank)), int(bank_labels.max()) + 1
    found = [
        knn_predict(part, feature_bank, labels, n_classes, knn_k=k, knn_t=KNN_TEMPERATURE)[:, 0]
        for part in torch.from_numpy(normalise(queries)).split(QUERIES_AT_ONCE)
    ]
    return torch.cat(found).numpy()


def linear(
    train: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"], queries: Float32[ndarray, "m d"]
) -> Int64[ndarray, "m"]:
    """Predicted labels of multinomial logistic regression, L2 with lambda = .01 / n, on unnormalised features."""
    if len(np.unique(labels)) == 1:
        return np.full(len(queries), labels[0], np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit is far above what changes a prediction
        probe = LogisticRegression(C=PROBE_C, max_iter=PROBE_ITERATIONS).fit(train.astype(np.float64), labels)
    return probe.predict(queries.astype(np.float64)).astype(np.int64)


PROBES = {"knn": knn, "linear": linear}
"""By the names that `--probe` takes."""


def accuracy(predicted: Int64[ndarray, "m"], labels: Int64[ndarray, "m"]) -> float:
    return float((predicted == labels).mean())
