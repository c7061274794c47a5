"""Score what was learned: on folds of a part of the training split, and on the test split, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from sklearn.model_selection import StratifiedKFold

from benchmarks.finetuned import load_finetuned
from smn_core.affine import DIAGONAL, Affine
from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.imageset import ImageSet
from smn_core.spec import BackboneSpec
from training.data import Subset
from training.evaluation import probes
from training.evaluation.paired import Change, compare
from training.features import Features, embed
from training.maps import WITHIN, fit_map

FOLDS, BATCH = 5, 32
MAPS = {"": None, " + map": WITHIN, " + diagonal map": DIAGONAL}
"""What may follow an adapter, by the end of its name; a map in full is stored as int8."""


@dataclass(frozen=True)
class Right:
    """Which images of the test split each probe gets right, 0 or 1."""

    of: dict[str, ndarray]

    def beside(self, frozen: Right) -> dict[str, Change]:
        return {name: compare(frozen.of[name], values) for name, values in self.of.items()}


def some(images: ImageSet, n: int, seed: int = 7) -> Subset:
    """Up to so many of the images, drawn at random; always the same ones."""
    return Subset(images, np.sort(np.random.default_rng(seed).permutation(len(images.names))[:n]))


def open_engine(spec: BackboneSpec, weights: Path | None) -> Engine:
    """An engine of the weights that an adapter means; without any, of the untouched backbone."""
    return Engine(load_finetuned(spec, weights) if weights is not None else load_backbone(spec), slots=1)


def score_folds(engine: Engine, images: ImageSet) -> dict[str, float]:
    """kNN and probe of every image by the folds without it."""
    found = embed(engine, None, images, BATCH)
    z, labels = found.z, _labels(found)
    right: dict[str, list[ndarray]] = {name: [] for name in probes.PROBES}
    for rest, held in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(z, labels):
        for name, probe in probes.PROBES.items():
            right[name].append(probe(z[rest], labels[rest], z[held]) == labels[held])
    return {name: float(np.concatenate(parts).mean()) for name, parts in right.items()}


def score_test(
    engine: Engine, learned_from: ImageSet, bank: ImageSet, test: ImageSet, ends: Sequence[str]
) -> dict[str, tuple[Right, int]]:
    """Which test images each probe gets right, and the bytes of the map, by what follows the adapter (`MAPS`)."""
    known, asked = embed(engine, None, bank, BATCH), embed(engine, None, test, BATCH)
    found = {}
    for end in ends:
        form = MAPS[end]
        precision = "int8" if form == WITHIN else "float32"
        affine = fit_map(engine, None, learned_from, form, precision=precision) if form is not None else None
        found[end] = _score(known, asked, affine), affine.nbytes if affine is not None else 0
    return found


def _score(known: Features, asked: Features, affine: Affine | None) -> Right:
    a, b = (affine.apply(f.z) if affine is not None else f.z for f in (known, asked))
    labels, wanted = _labels(known), _labels(asked)
    return Right({n: (probe(a, labels, b) == wanted).astype(np.float64) for n, probe in probes.PROBES.items()})


def _labels(found: Features) -> Any:
    assert found.labels is not None
    return found.labels
