"""Measure masks on a set of images, through the engine and the image code that serve.

For the frozen backbone and every mask: signs without labels on the train split; with labels kNN and linear probe on the
test split, with all labels or a few (several draws, the same for every mask), or on folds of the train split: that is
for choosing settings, and the test split stays unopened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold

from smn_core.cascade.file import CascadeFolder
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.verbs.offline import Progress, silent
from training.cascade.fusion import FusionChoice
from training.data import has_split, open_split
from training.evaluation import probes, signs
from training.evaluation.compare import compare
from training.features import EMBEDDINGS, Cache, Features, embed_view
from training.labels import pick_labels, with_classes_of

TEST = "test"


@dataclass(frozen=True)
class Plan:
    """What to measure. `labels`: fractions or numbers per class, each drawn `seeds` times; all labels always.

    `folds`: score every image of the train split by the others' folds instead of the test split; 0: the test split.
    `views`: whether two views of every train image are embedded for the sign of their agreement.
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
    plan: Plan,
    progress: Progress = silent,
    cascades: Sequence[tuple[str, CascadeFolder]] = (),
    fusions: Sequence[FusionChoice] = (),
) -> dict[str, Any]:
    """Rows of results, the untouched backbone first, as plain data; those of a cascade with its controls last.

    Raises:
        InvalidData: no such split, no readable image, a split without the labels that the other has.
        WrongBackbone: a mask does not fit.
    """
    train = open_split(plan.data, plan.train_split)
    test, remarks = _test_images(plan, train)
    for _, task in masks:
        engine.prepare(task)
    cache = Cache([folder.folder / EMBEDDINGS for _, folder in cascades])

    def through(digest: str | None, images: ImageSet) -> Features:
        return cache.embed(engine, digest, images, plan.batch_size, progress)

    def scored(bank: Features, tested: Features | None) -> dict[str, Any]:
        if plan.folds:
            found = _fold_scores(bank, plan)
        else:
            found = _scores(bank, tested, plan, train.classes) if tested is not None else {}
        return found | {"skipped": len(bank.skipped)}

    rows: list[dict[str, Any]] = []
    frozen = through(None, train)
    everything: list[tuple[str, TaskMask | None]] = [("frozen", None), *masks]
    for name, mask in everything:
        digest = mask.digest if mask is not None else None
        bank = through(digest, train) if mask is not None else frozen
        row: dict[str, Any] = {"name": name, "digest": digest}
        if mask is not None:
            row["density"] = mask.density
        row["signs"] = {"effective_rank": signs.effective_rank(bank.z)}
        if plan.views:
            views = [embed_view(engine, digest, train, seed, plan.batch_size) for seed in (0, 1)]
            row["signs"]["view_agreement"] = signs.view_agreement(*views)
        row["signs"] |= {"neighbours_kept": signs.neighbours_kept(bank.z, frozen.z), **_losses(mask)}
        rows.append(row | scored(bank, through(digest, test) if test is not None else None))
    for name, folder in cascades:
        for facts, bank, tested in compare(engine, name, folder, fusions, through, train, test):
            facts["signs"] = {
                "effective_rank": signs.effective_rank(bank.z),
                "neighbours_kept": signs.neighbours_kept(bank.z, frozen.z),
            }
            rows.append(facts | scored(bank, tested))
    return {
        "data": Path(plan.data).name,
        "train_images": len(train.names),
        "test_images": len(test.names) if test is not None else 0,
        "image_size": int(engine.backbone.preprocess["input_size"][-1]),
        "folds": plan.folds,
        "knn_k": probes.neighbours_for(len(train.names)),
        "seeds": plan.seeds,
        "remarks": remarks,
        "rows": rows,
    }


def _losses(mask: TaskMask | None) -> dict[str, float]:
    """Training's loss as the mask began to move and at the end, where its file tells; falling proves nothing."""
    told = mask.metadata.get("metrics", "") if mask is not None else ""
    try:
        values = json.loads(told)
        return {name: float(values[name]) for name in ("loss_before", "loss_after") if name in values}
    except (ValueError, TypeError):  # free text, from other programs
        return {}


def _test_images(plan: Plan, train: ImageSet) -> tuple[ImageSet | None, list[str]]:
    """The test split where there is one with labels; without labels there is nothing to score. And what to say of it.

    A folder without splits is its own training set: scores on it would be of images that the bank holds.

    Raises:
        InvalidData: a split that was asked for by name is not there; one that is there cannot be read.
    """
    if plan.folds:
        return None, []
    if plan.test_split == TEST and not has_split(plan.data, TEST):
        return None, ["no test split: nothing is scored; --folds scores the train split"]
    test = open_split(plan.data, plan.test_split)
    if test.labels is None:
        return None, [f"the split {plan.test_split!r} has no labels: nothing is scored"]
    return with_classes_of(train, test), []


def _scores(bank: Features, test: Features, plan: Plan, classes: Sequence[str]) -> dict[str, Any]:
    if bank.labels is None or test.labels is None:
        raise InvalidData("the train split has no labels and the test split has")
    found: dict[str, Any] = {
        name: probes.accuracy(probes.PROBES[name](bank.z, bank.labels, test.z), test.labels) for name in plan.probes
    }
    if "linear" in plan.probes:
        low = {str(amount): _low_shot(bank, test, amount, plan.seeds, classes) for amount in plan.labels}
        if low:
            found["low_shot"] = low
    return found


def _fold_scores(bank: Features, plan: Plan) -> dict[str, Any]:
    """kNN and linear probe of every image by the folds that it is not in; folds keep the shares of the classes."""
    labels = bank.labels
    if labels is None:
        raise InvalidData("--folds scores labels, and the train split has none")
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    if smallest < plan.folds:
        raise InvalidArgument(f"--folds {plan.folds}: a class has {smallest} readable images")
    predicted = {name: np.empty_like(labels) for name in plan.probes}
    for rest, fold in StratifiedKFold(plan.folds, shuffle=True, random_state=0).split(bank.z, labels):
        z, known, asked = bank.z[rest], labels[rest], bank.z[fold]
        for name in plan.probes:
            predicted[name][fold] = probes.PROBES[name](z, known, asked)
    return {name: probes.accuracy(found, labels) for name, found in predicted.items()}


def _low_shot(bank: Features, test: Features, amount: float, seeds: int, classes: Sequence[str]) -> dict[str, Any]:
    """Linear probe on a few labels, several draws; the draws are the same for every mask."""
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
