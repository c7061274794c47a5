"""Fit a linear classifier on embeddings: strength by cross-validation, accuracy on held-out rows.

    p(c | z) = softmax(weight z + bias)[c]

Features are standardised for the fit, and the standardisation is folded into the weights afterwards: the classifier
takes embeddings as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.preprocessing import StandardScaler

from smn_core.errors import InvalidData
from smn_core.labels import probabilities
from smn_core.mask import Head
from training.labels import say_readable

PROBE = "probe"
"""The key of a file's `metrics` under which the scores of its classifier stand."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Of LogisticRegression's C, from the most regularised on."""
MOST_FOLDS = 5
HELD_OUT = 0.2
FEWEST_PER_CLASS = 5
MOST_ITERATIONS = 1000
BINS = 15
"""Of the calibration error, between confidence 0 and 1 (Guo et al., "On calibration of modern neural networks")."""


@dataclass(frozen=True)
class Fitted:
    """A classifier of embeddings, and how well it did on rows that neither it nor its strength was chosen by."""

    head: Head
    strength: float
    n_rows: int
    n_held_out: int
    accuracy: float
    log_loss: float
    calibration_error: float

    def say(self) -> str:
        """The scores on one line."""
        return (
            f"{len(self.head.classes)} classes, accuracy {self.accuracy:.3f} and calibration error "
            f"{self.calibration_error:.3f} on {self.n_held_out} held-out images, C {self.strength:g}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "images": self.n_rows,
            "classes": len(self.head.classes),
            "C": self.strength,
            "held_out": {
                "images": self.n_held_out,
                "accuracy": round(self.accuracy, 6),
                "log_loss": round(self.log_loss, 6),
                "calibration_error": round(self.calibration_error, 6),
            },
        }


def fit_head(z: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"], classes: Sequence[str], seed: int = 0) -> Fitted:
    """Fit on all rows with the strength that is best in cross-validation on 80 % of them; score it on the other 20 %.

    Classes without a row are left out of the classifier.

    Raises:
        InvalidData: fewer than two classes, or fewer than `FEWEST_PER_CLASS` rows of one.
    """
    names, numbers = _require_classes(labels, classes)
    rest, held = train_test_split(
        np.arange(len(z)), test_size=max(round(HELD_OUT * len(z)), len(names)), stratify=numbers, random_state=seed
    )
    strength = choose_strength(z[rest], numbers[rest], seed)
    tried = fold(*_fit(z[rest], numbers[rest], strength), names)
    predicted = probabilities(tried, z[held])
    return Fitted(
        head=fold(*_fit(z, numbers, strength), names),
        strength=strength,
        n_rows=len(z),
        n_held_out=len(held),
        accuracy=float((predicted.argmax(1) == numbers[held]).mean()),
        log_loss=float(log_loss(numbers[held], predicted, labels=np.arange(len(names)))),
        calibration_error=calibration_error(predicted, numbers[held]),
    )


def _require_classes(labels: Int64[ndarray, "n"], classes: Sequence[str]) -> tuple[list[str], Int64[ndarray, "n"]]:
    """Names of the classes that have rows, and each row's number among them."""
    present, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(present) < 2:
        raise InvalidData("a classifier takes two classes at least: a folder for each, with images in it")
    if counts.min() < FEWEST_PER_CLASS:
        short = classes[present[counts.argmin()]]
        raise InvalidData(
            f"class {short} has {say_readable(int(counts.min()))}: it takes {FEWEST_PER_CLASS} at least; add some, "
            "or move its folder away"
        )
    return [str(classes[number]) for number in present], numbers.astype(np.int64)


def choose_strength(z: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"], seed: int = 0) -> float:
    """The C of `STRENGTHS` with the smallest log loss over folds; of equal ones the most regularised."""
    folds = StratifiedKFold(min(MOST_FOLDS, int(np.bincount(labels).min())), shuffle=True, random_state=seed)
    losses = np.zeros(len(STRENGTHS))
    for rest, held in folds.split(z, labels):
        for place, strength in enumerate(STRENGTHS):
            scaler, model = _fit(z[rest], labels[rest], strength)
            predicted = model.predict_proba(scaler.transform(z[held].astype(np.float64)))
            losses[place] += log_loss(labels[held], predicted, labels=model.classes_)
    return STRENGTHS[int(losses.argmin())]


def _fit(
    z: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"], strength: float
) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(z.astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit is far above what changes a label
        model = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS)
        return scaler, model.fit(scaler.transform(z.astype(np.float64)), labels)


def fold(scaler: StandardScaler, model: LogisticRegression, names: Sequence[str]) -> Head:
    """The classifier of unstandardised embeddings. Two classes have two rows: scikit-learn keeps one, of the second."""
    coefficients, intercept = model.coef_, model.intercept_
    if len(names) == 2:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    weight = coefficients / scaler.scale_
    bias = intercept - weight @ scaler.mean_
    return Head(weight.astype(np.float32), bias.astype(np.float32), tuple(names))


def calibration_error(predicted: Float64[ndarray, "n c"], labels: Int64[ndarray, "n"]) -> float:
    """The mean distance of confidence and accuracy over `BINS` equal bins of confidence, weighted by their rows."""
    confidence, right = predicted.max(1), predicted.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    apart = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(apart))
