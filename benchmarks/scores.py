"""What benchmarks on labelled images share: the probe with five labels a class, maps, changes and lines of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from smn_core.affine import Affine
from training.evaluation import probes
from training.evaluation.paired import Change
from training.features import Features
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


def mapped(features: Features, affine: Affine) -> Features:
    """The embeddings through a map."""
    return replace(features, z=affine.apply(features.z))


def tell(line: Mapping[str, Any], out: Path | None) -> None:
    """Print a row as one JSON line, and add it to a file where one is given."""
    print(json.dumps(line), flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def rounded(change: Change) -> dict[str, float]:
    """A change with four decimals."""
    return {key: round(value, 4) for key, value in change.as_json().items()}
