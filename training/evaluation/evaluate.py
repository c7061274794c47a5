"""Measure masks on a set of images, with the engine and the image code that serve.

The frozen backbone and every mask get signs without labels, on the train split. Where there are labels they also get
kNN and linear probe on the test split, with all labels or with a few (several draws, the same for every mask). For
choosing settings folds of the train split are scored instead, and the test split stays unopened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold

from smn_core.cascade.file import CascadeFolder
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.verbs.offline import OnBatch, say_nothing
from smn_core.verdict import read_verdict
from training.cascade.fusion import FusionChoice
from training.data import has_split, name_data, open_split, others_among
from training.evaluation import probes, signs
from training.evaluation.compare import compare
from training.features import EMBEDDINGS, Cache, Features, embed_view
from training.labels import name_smallest, pick_labels, renumber_classes, say_readable, say_why_unlabelled

TEST = "test"


@dataclass(frozen=True)
class EvaluationSettings:
    """What to measure.

    `labels`: amounts of few labels, each a fraction or a number for every class, drawn `seeds` times. All labels are
    always scored too. `folds`: number of folds of the train split to score instead of the test split, or 0.
    `views`: whether two views of train images are embedded, for the agreement between them.
    """

    data: str
    probes: Sequence[str] = tuple(probes.PROBES)
    labels: Sequence[float] = ()
    seeds: int = 5
    train_split: str = "train"
    test_split: str = TEST
    folds: int = 0
    batch_size: int = 32
    views: bool = True

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.probes) - set(probes.PROBES)):
            raise InvalidArgument(f"unknown probe {unknown[0]!r}: choose {', '.join(probes.PROBES)}")
        if self.labels and "linear" not in self.probes:
            raise InvalidArgument("--labels is for the linear probe: leave it out, or say --probe linear")
        if self.seeds < 1:
            raise InvalidArgument(f"--seeds {self.seeds}: at least 1")
        if self.folds < 0 or self.folds == 1:
            raise InvalidArgument(f"--folds {self.folds}: at least 2, or 0 for the test split")
        if self.folds and self.labels:
            raise InvalidArgument("--labels draws few labels for the test split: leave out --folds")


def evaluate(
    engine: Engine,
    masks: Sequence[tuple[str, TaskMask]],
    settings: EvaluationSettings,
    on_batch: OnBatch = say_nothing,
    cascades: Sequence[tuple[str, CascadeFolder]] = (),
    fusions: Sequence[FusionChoice] = (),
) -> dict[str, Any]:
    """Measure everything and return rows as plain data: the untouched backbone, masks, cascades with their controls.

    `unreadable` are the images that were left out, with the reasons, by split; `other_files` count the files of kinds
    that are not read, by split and suffix.

    Raises:
        InvalidData: there is no such split, no image can be read, or only one of the splits has labels.
        WrongBackbone: a mask does not fit.
    """
    train = open_split(settings.data, settings.train_split)
    test, remarks = _open_test_split(settings, train)
    if train.labels is None and (settings.folds or test is not None):
        missing = "--folds scores labels, and the train split has none"
        missing = missing if settings.folds else "the train split has no labels and the test split has"
        raise InvalidData(f"{missing}{say_why_unlabelled(train)}")
    others = {settings.train_split: others_among(train)}
    if test is not None:
        others[settings.test_split] = others_among(test)
    for _, task in masks:
        engine.prepare(task)
    cache = Cache([folder.folder / EMBEDDINGS for _, folder in cascades])
    unreadable: dict[str, list[str]] = {}

    def embed(digest: str | None, images: ImageSet) -> Features:
        return cache.embed(engine, digest, images, settings.batch_size, on_batch)

    def scored(bank: Features, tested: Features | None) -> dict[str, Any]:
        if settings.folds:
            found = _score_folds(bank, settings, train.classes)
        else:
            found = _score(bank, tested, settings, train.classes) if tested is not None else {}
        return found | {"skipped": len(bank.skipped)}

    rows: list[dict[str, Any]] = []
    frozen = embed(None, train)
    unreadable[settings.train_split] = list(frozen.skipped)
    everything: list[tuple[str, TaskMask | None]] = [("frozen", None), *masks]
    for name, mask in everything:
        digest = mask.digest if mask is not None else None
        bank = embed(digest, train) if mask is not None else frozen
        row: dict[str, Any] = {"name": name, "digest": digest}
        if mask is not None:
            row["density"] = mask.density
            if (told := read_verdict(mask.metadata)) is not None:
                row["verdict"] = told
        row["signs"] = {"effective_rank": signs.effective_rank(bank.z)}
        if settings.views:
            views = [embed_view(engine, digest, train, seed, settings.batch_size) for seed in (0, 1)]
            row["signs"]["view_agreement"] = signs.view_agreement(*views)
        row["signs"] |= {"neighbours_kept": signs.neighbours_kept(bank.z, frozen.z), **_read_losses(mask)}
        tested = embed(digest, test) if test is not None else None
        if tested is not None:
            unreadable[settings.test_split] = list(tested.skipped)
        rows.append(row | scored(bank, tested))
    for name, folder in cascades:
        for facts, bank, tested in compare(engine, name, folder, fusions, embed, train, test):
            facts["signs"] = {
                "effective_rank": signs.effective_rank(bank.z),
                "neighbours_kept": signs.neighbours_kept(bank.z, frozen.z),
            }
            rows.append(facts | scored(bank, tested))
    return {
        "data": name_data(settings.data),
        "train_images": len(train.names),
        "test_images": len(test.names) if test is not None else 0,
        "image_size": int(engine.backbone.preprocess["input_size"][-1]),
        "folds": settings.folds,
        "knn_k": probes.choose_k(len(train.names)),
        "seeds": settings.seeds,
        "remarks": remarks,
        "unreadable": unreadable,
        "other_files": {split: dict(others) for split, others in others.items() if others},
        "rows": rows,
    }


def _read_losses(mask: TaskMask | None) -> dict[str, float]:
    """The losses that a mask's file tells, as its scores began to move and at the end. A fall proves nothing."""
    told = mask.metadata.get("metrics", "") if mask is not None else ""
    try:
        values = json.loads(told)
        return {name: float(values[name]) for name in ("loss_before", "loss_after") if name in values}
    except (ValueError, TypeError):  # other programs may write any text there
        return {}


def _open_test_split(settings: EvaluationSettings, train: ImageSet) -> tuple[ImageSet | None, list[str]]:
    """The test split, or None where nothing can be scored, and a remark that says why.

    A folder without splits has no test split: its images are in the bank of the kNN already.

    Raises:
        InvalidData: the split was asked for by name and is not there, or it cannot be read.
    """
    if settings.folds:
        return None, []
    if settings.test_split == TEST and not has_split(settings.data, TEST):
        return None, ["no test split: nothing is scored; --folds scores the train split"]
    test = open_split(settings.data, settings.test_split)
    if test.labels is None:
        why = say_why_unlabelled(test)
        return None, [f"the split {settings.test_split!r} has no labels, nothing is scored{why}"]
    return renumber_classes(train, test), []


def _score(bank: Features, test: Features, settings: EvaluationSettings, classes: Sequence[str]) -> dict[str, Any]:
    assert bank.labels is not None
    assert test.labels is not None
    found: dict[str, Any] = {
        name: probes.accuracy(probes.PROBES[name](bank.z, bank.labels, test.z), test.labels) for name in settings.probes
    }
    if "linear" in settings.probes:
        low = {str(amount): _score_low_shot(bank, test, amount, settings.seeds, classes) for amount in settings.labels}
        if low:
            found["low_shot"] = low
    return found


def _score_folds(bank: Features, settings: EvaluationSettings, classes: Sequence[str]) -> dict[str, Any]:
    """Predict every image from the folds without it. Each fold has the classes in their shares of the whole."""
    labels = bank.labels
    assert labels is not None
    name, count = name_smallest(labels, classes)
    if count < settings.folds:
        raise InvalidArgument(
            f"--folds {settings.folds}: {name} has {say_readable(count)}: fewer folds, or move its folder away"
        )
    predicted = {name: np.empty_like(labels) for name in settings.probes}
    for rest, fold in StratifiedKFold(settings.folds, shuffle=True, random_state=0).split(bank.z, labels):
        z, known, asked = bank.z[rest], labels[rest], bank.z[fold]
        for name in settings.probes:
            predicted[name][fold] = probes.PROBES[name](z, known, asked)
    return {name: probes.accuracy(found, labels) for name, found in predicted.items()}


def _score_low_shot(
    bank: Features, test: Features, amount: float, seeds: int, classes: Sequence[str]
) -> dict[str, Any]:
    """Score the linear probe on several draws of few labels. The draws are the same for every mask."""
    assert bank.labels is not None
    assert test.labels is not None
    scores = []
    for seed in range(seeds):
        picked = pick_labels(bank.labels, amount, seed, classes)
        predicted = probes.linear(bank.z[picked], bank.labels[picked], test.z)
        scores.append(probes.accuracy(predicted, test.labels))
    return {
        "mean": float(np.mean(scores)),
        "deviation": float(np.std(scores, ddof=1 if seeds > 1 else 0)),
        "all": scores,
    }
