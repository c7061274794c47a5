"""Every space of a table, scored on the test split image by image: kNN, linear probe, probes of few labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from benchmarks.finetuned import load_finetuned
from benchmarks.paper.probe import predict
from benchmarks.paper.wanted import CLUSTERS, EXPERTS, FINETUNE, ROOT, SUPERVISED, Wanted, name_few
from benchmarks.scores import mapped
from smn_core.backbone import load_backbone
from smn_core.cascade.file import open_folder
from smn_core.engine import Engine
from smn_core.errors import InvalidData
from smn_core.files import replacing
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, with_bits
from smn_core.spec import BackboneSpec
from training.data import Subset, open_split
from training.evaluation import probes
from training.evaluation.compare import compare
from training.evaluation.controls import flip_at_random, strip
from training.features import EMBEDDINGS, Cache, Features, embed
from training.labels import pick_labels, renumber_classes
from training.maps import fit_map
from training.progress import Tell

FROZEN, MAP, MASK, FLIPS, FOREIGN = "frozen", "frozen + map", "mask", "random flips", "foreign mask"
MASK_AND_MAP = f"{MASK} + map"
FEW_OF = {SUPERVISED: "supervised mask on the few labels", FINETUNE: "full fine-tuning on the few labels"}
ALL_OF = {SUPERVISED: "supervised mask, all labels", FINETUNE: "full fine-tuning, all labels"}
WHITENED = "root, whitened"
SCORES = "scores"
Right = dict[str, ndarray]
"""For every test image whether it was right, 0 or 1: `knn`, `linear`, and `few/AMOUNT/DRAW`."""


@dataclass(frozen=True)
class Scored:
    """A space that was scored. `facts` has its name, its setting (1, 2 or 3), its bytes and, of a mask, the density."""

    facts: Mapping[str, Any]
    right: Right


def open_splits(data: str) -> tuple[ImageSet, ImageSet]:
    """The train and the test split, both with labels, of equal class numbers.

    Raises:
        InvalidData: one is missing or has no labels.
    """
    train = open_split(data, "train")
    test = open_split(data, "test")
    if train.labels is None or test.labels is None:
        raise InvalidData(f"{data}: the table takes labels of both splits, class folders under train/ and test/")
    return train, renumber_classes(train, test)


def read_scores(folder: Path) -> list[Scored]:
    """What is scored already, in the order in which it was."""
    found = []
    for file in sorted((folder / SCORES).glob("*.npz"), key=lambda path: path.stat().st_mtime_ns):
        with np.load(file) as kept:
            arrays = dict(kept)
        found.append(Scored(json.loads(str(arrays.pop("facts"))), arrays))
    return found


class Scorer:
    """Scores what the runs of a folder left, and keeps each space's answers; what is there is not scored again."""

    def __init__(self, wanted: Wanted, spec: BackboneSpec, say: Tell) -> None:
        self._wanted, self._spec, self._say = wanted, spec, say
        self._train, self._test = open_splits(wanted.data)
        self._engine = Engine(load_backbone(spec), slots=1)
        self._cache = Cache([wanted.out / EMBEDDINGS])
        self._device = self._engine.backbone.device
        labels = self._train.labels
        assert labels is not None
        self._draws = {
            f"few/{amount:g}/{seed}": pick_labels(labels, amount, seed, self._train.classes)
            for amount in wanted.labels
            for seed in range(wanted.seeds)
        }

    def score(self) -> None:
        """Score every space whose file is there."""
        self._score_masks()
        self._score_with_labels()
        self._score_on_few_labels()
        if EXPERTS not in self._wanted.skip:
            for clusters in CLUSTERS:
                self._score_cascade(clusters)

    def _score_masks(self) -> None:
        """Setting 1 and the rows without labels of setting 2: frozen, mask, controls, each with a map too."""
        wanted = self._wanted
        for name, mask, n_bytes in self._masks():
            digest = mask.digest if mask is not None else None
            facts: dict[str, Any] = {"setting": 1, "bytes": n_bytes}
            facts |= {"density": mask.density} if mask is not None else {}
            with_map = name != FLIPS
            missing = [n for n in (name, *([f"{name} + map"] if with_map else [])) if not self._is_scored(n, few=True)]
            if not missing:
                continue
            if mask is not None:
                self._engine.prepare(mask)
            bank, tested = self._embed(digest, self._train), self._embed(digest, self._test)
            if name in missing:
                self._keep({"name": name, **facts}, bank, tested, few=True)
            if with_map and f"{name} + map" in missing:
                affine = fit_map(self._engine, digest, self._train, precision="int8", batch_size=wanted.batch_size)
                facts = facts | {"name": f"{name} + map", "bytes": n_bytes + affine.nbytes}
                self._keep(facts, mapped(bank, affine), mapped(tested, affine), few=True)
            if mask is not None:
                self._engine.release(str(mask.digest))

    def _masks(self) -> Iterator[tuple[str, TaskMask | None, int]]:
        """The spaces without labels: name, mask, bytes of its file."""
        yield FROZEN, None, 0
        file = self._wanted.out / f"{ROOT}.smn"
        if file.exists():
            root = with_bits(read_mask(file), self._engine.backbone)
            yield MASK, root, file.stat().st_size
            if (flipped := strip(flip_at_random(root, self._wanted.seed))) is not None:
                yield FLIPS, flipped, file.stat().st_size
        foreign = self._wanted.foreign
        # Its own map was fitted on other images, and a map of these takes its place.
        bare = strip(with_bits(read_mask(foreign), self._engine.backbone)) if foreign is not None else None
        if foreign is not None and bare is not None:
            yield FOREIGN, bare, foreign.stat().st_size

    def _score_with_labels(self) -> None:
        for request in self._wanted.with_all_labels():
            part = request.out.stem
            if request.out.exists() and not self._is_scored(ALL_OF[part], few=False):
                engine, digest, facts = self._open(request.out)
                splits = (embed(engine, digest, split, self._wanted.batch_size) for split in (self._train, self._test))
                self._keep({"name": ALL_OF[part], "setting": 1, **facts}, *splits, few=False)

    def _score_on_few_labels(self) -> None:
        """Setting 2: what learned from the few labels, by the linear probe of the same few."""
        for part, name in FEW_OF.items():
            right: Right = {}
            facts: dict[str, Any] = {"name": name, "setting": 2}
            for amount in self._wanted.labels:
                for seed in range(self._wanted.seeds):
                    key = f"few/{amount:g}/{seed}"
                    files = list((self._wanted.out / "few").glob(f"{name_few(part, amount, seed)}.s*"))
                    file = next((f for f in files if f.suffix in (".smn", ".safetensors")), None)
                    if file is None or self._is_scored(name, keys=[key]):
                        continue
                    engine, digest, told = self._open(file)
                    facts |= told
                    bank = embed(engine, digest, Subset(self._train, self._draws[key]), self._wanted.batch_size)
                    tested = embed(engine, digest, self._test, self._wanted.batch_size)
                    right[key] = self._right(bank, tested)
                    self._say(f"  {name}: {key.removeprefix('few/')} {right[key].mean():.3f}")
            if right:
                self._write(facts, right)

    def _score_cascade(self, clusters: str) -> None:
        """Setting 3: the cascade and its controls, as `smn evaluate` compares them."""
        folder = self._wanted.cascade_folder(clusters)
        if not (folder / "README.md").exists():
            return
        for facts, bank, tested in compare(
            self._engine, clusters, open_folder(folder), [], self._embed, self._train, self._test
        ):
            assert tested is not None
            name = facts["name"]
            for alone in (WHITENED, ROOT):  # the same of every cascade, and scored with the first
                name = alone if name == f"{clusters}: {alone}" else name
            if not self._is_scored(name, few=False):
                told = {"name": name, "setting": 3, "bytes": facts["bytes"]["total"], "parts": facts["bytes"]}
                self._keep(told, bank, tested, few=False)

    def _embed(self, digest: str | None, images: ImageSet) -> Features:
        return self._cache.embed(self._engine, digest, images, self._wanted.batch_size)

    def _open(self, file: Path) -> tuple[Engine, str | None, dict[str, Any]]:
        """An engine of a run with labels: a mask that is prepared in it, or the weights of fine-tuning."""
        facts: dict[str, Any] = {"bytes": file.stat().st_size}
        if file.suffix == ".safetensors":
            return Engine(load_finetuned(self._spec, file), slots=1), None, facts
        engine = Engine(load_backbone(self._spec), slots=1)
        mask = with_bits(read_mask(file), engine.backbone)
        engine.prepare(mask)
        return engine, mask.digest, facts | {"density": mask.density}

    def _keep(self, facts: dict[str, Any], bank: Features, tested: Features, *, few: bool) -> None:
        """Score a space by both probes, with `few` on every draw too, and keep the answers."""
        known, asked = _labels(bank), _labels(tested)
        right = {
            "knn": (probes.knn(bank.z, known, tested.z) == asked).astype(np.float64),
            "linear": self._right(bank, tested),
        }
        for key, picked in self._draws.items() if few else ():
            rows = np.flatnonzero(np.isin(bank.kept, picked))
            drawn = replace(bank, z=bank.z[rows], labels=known[rows], kept=bank.kept[rows])
            right[key] = self._right(drawn, tested)
        self._say(f"  {facts['name']}: kNN {right['knn'].mean():.3f}, probe {right['linear'].mean():.3f}")
        self._write(facts, right)

    def _right(self, bank: Features, tested: Features) -> ndarray:
        found = predict(bank.z, _labels(bank), tested.z, self._device)
        return (found == _labels(tested)).astype(np.float64)

    def _write(self, facts: dict[str, Any], right: Right) -> None:
        """Add answers to the file of a space."""
        path = self._path(facts["name"])
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            with np.load(path) as kept:
                right = {**{key: kept[key] for key in kept.files if key != "facts"}, **right}
        with replacing(path) as temporary:
            np.savez(temporary, facts=np.array(json.dumps(facts)), **right)  # type: ignore[arg-type]

    def _is_scored(self, name: str, *, few: bool = False, keys: list[str] | None = None) -> bool:
        path = self._path(name)
        wanted = keys if keys is not None else ["knn", "linear", *(self._draws if few else ())]
        if not path.exists():
            return False
        with np.load(path) as kept:
            return set(wanted) <= set(kept.files)

    def _path(self, name: str) -> Path:
        return self._wanted.out / SCORES / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.npz"


def _labels(features: Features) -> ndarray:
    assert features.labels is not None
    return features.labels
