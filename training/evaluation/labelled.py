"""Judge a space by a few labels: ten a class are enough to tell which of two spaces is better, most of the time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from sklearn.model_selection import StratifiedKFold

from smn_core.errors import InvalidData
from smn_core.imageset import ImageSet
from training.data import open_labelled
from training.evaluation import probes
from training.evaluation.signs import normalise
from training.labels import name_smallest, say_readable

KNN_K = 5
FEWEST_CLASSES, FEWEST_PER_CLASS = 2, 3
MOST_FOLDS = 5
KNN, PROBE, BOTH = "knn", "probe", "both"


def open_few(folder: Path) -> ImageSet:
    """The few labelled images of a folder, as `smn probe` takes it.

    Raises:
        InvalidData: as `open_labelled` and `require_labels`.
    """
    images = open_labelled(str(folder))
    require_labels(images.labels, images.classes)
    return images


def require_labels(labels: Int64[ndarray, "n"] | None, classes: Sequence[str] = ()) -> Int64[ndarray, "n"]:
    """The labels; `classes` are their names for the message.

    Raises:
        InvalidData: there are none, one class alone, or a class with too few images.
    """
    asked = f"--labelled takes a folder for each class with ten images in it, at least {FEWEST_PER_CLASS}"
    if labels is None:
        raise InvalidData(f"{asked}: these images have no labels")
    if len(np.unique(labels)) < FEWEST_CLASSES:
        raise InvalidData(f"{asked}: there is one class alone")
    name, count = name_smallest(labels, classes)
    if count < FEWEST_PER_CLASS:
        raise InvalidData(f"{asked}: {name} has {say_readable(count)}: add some, or move its folder away")
    return labels


def score(z: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"]) -> dict[str, Float64[ndarray, "n"]]:
    """Whether every image is given its label (0 or 1) by kNN and by the linear probe, from other images; and the mean.

    The kNN leaves only the image itself out; the probe is fitted on folds without it.
    """
    knn = (leave_one_out(z, labels) == labels).astype(np.float64)
    folds = min(MOST_FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    predicted = np.empty_like(labels)
    for rest, fold in StratifiedKFold(folds, shuffle=True, random_state=0).split(z, labels):
        predicted[fold] = probes.linear(z[rest], labels[rest], z[fold])
    probe = (predicted == labels).astype(np.float64)
    return {KNN: knn, PROBE: probe, BOTH: (knn + probe) / 2}


def leave_one_out(z: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"]) -> Int64[ndarray, "n"]:
    """The label that the `KNN_K` nearest others vote for, each with weight exp(cosine / T)."""
    unit = normalise(z).astype(np.float64)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    k = min(KNN_K, len(z) - 1)
    near = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    weights = np.exp(np.take_along_axis(similar, near, axis=1) / probes.KNN_TEMPERATURE)
    classes, numbers = np.unique(labels, return_inverse=True)
    votes = np.zeros((len(z), len(classes)))
    for column in range(k):
        np.add.at(votes, (np.arange(len(z)), numbers[near[:, column]]), weights[:, column])
    return classes[votes.argmax(1)]
