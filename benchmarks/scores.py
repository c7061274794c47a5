"""What benchmarks on labelled images share: the probe with five labels a class, and a change as a row keeps it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from training.evaluation import probes
from training.evaluation.paired import Change
from training.labels import pick_labels

FEW_LABELS = 5


def score_few(
    bank: Float32[ndarray, "n d"],
    known: Int64[ndarray, "n"],
    asked: Float32[ndarray, "m d"],
    labels: Int64[ndarray, "m"],
    draws: int,
) -> Float64[ndarray, "draws"]:
    """The probe's accuracy on `asked`, fitted on five images a class of the bank, for each of `draws` draws of them."""
    drawn = [pick_labels(known, FEW_LABELS, seed) for seed in range(draws)]
    return np.array([(probes.linear(bank[few], known[few], asked) == labels).mean() for few in drawn])


def rounded(change: Change) -> dict[str, float]:
    """A change with four decimals."""
    return {key: round(value, 4) for key, value in change.as_json().items()}
