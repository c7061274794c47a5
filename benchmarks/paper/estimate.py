"""How long the work will take: a step of each recipe and an embedding, timed here on some of the images."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.paper.wanted import CLUSTERS, EXPERTS, FEW, FINETUNE, ROOT, SUPERVISED, Wanted
from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.images import draft_side_px
from smn_core.imageset import ImageSet
from smn_core.spec import BackboneSpec
from smn_core.verbs.offline import embed_through, make_loader
from training.config import AUTO, PLAIN, Config
from training.data import Item, Views
from training.features import DECODE_THREADS
from training.forms import time_form
from training.plan import choose_images
from training.request import Request

READ_IMAGES, EMBEDDED_IMAGES = 6, 16
SCORE = "score"


@dataclass(frozen=True)
class Planned:
    """A piece of the work: its name, what it is in words, and the seconds that it is expected to take."""

    name: str
    what: str
    seconds: float


class Speed:
    """Seconds that a step of a recipe, and one embedding, take here; a recipe is timed once."""

    def __init__(self, spec: BackboneSpec, images: ImageSet, workers: int) -> None:
        self._spec, self._images, self._workers = spec, images, workers
        self._images_s: dict[str, float] = {}
        engine = Engine(load_backbone(spec), slots=1)
        self._preprocess: Mapping[str, Any] = engine.backbone.preprocess
        load, embed = make_loader(images, engine), embed_through(engine, None)
        side_px = int(self._preprocess["input_size"][-1])
        x = torch.zeros(EMBEDDED_IMAGES, 3, side_px, side_px)
        embed(x)
        embed_s = _seconds(lambda: embed(x)) / EMBEDDED_IMAGES
        read_s = self._read(load) / DECODE_THREADS
        self.embedding_s = max(embed_s, read_s) if _has_cores() else embed_s + read_s

    def step_s(self, config: Config) -> float:
        """A step of a recipe, reading and cropping included."""
        name = config.name
        if name not in self._images_s:
            timed = replace(config, precision=PLAIN) if config.precision == AUTO else config
            found = time_form(self._spec, timed, math.inf, time.perf_counter)
            learn_s = found[0] if found is not None else math.inf
            views = Views(
                self._images, config.make_objective().make_transform(dict(self._preprocess)),
                draft_side_px(self._preprocess),
            )  # fmt: skip
            read_s = self._read(lambda index: views[Item(index, seed=index)])
            beside = read_s / self._workers if self._workers else read_s
            self._images_s[name] = max(learn_s, beside) if self._workers and _has_cores() else learn_s + read_s
        return self._images_s[name] * config.batch_size

    def _read(self, load: Any) -> float:
        n = min(READ_IMAGES, len(self._images.names))
        return _seconds(lambda: [load(index) for index in range(n)]) / n


def plan(wanted: Wanted, train: ImageSet, test: ImageSet, speed: Speed) -> list[Planned]:
    """Every piece of the work, in order.

    Raises:
        SMNError: a run cannot work: too few images, labels or steps.
    """
    few = [request for request in wanted.with_few_labels() if request.seed == 0]
    fitted = {request.out: _fit(request) for request in [wanted.root(), *wanted.with_all_labels(), *few]}
    root, n_root = fitted[wanted.root().out]
    found = [_planned(ROOT, "a mask without labels", root, n_root, speed)]
    names = {SUPERVISED: "a supervised mask, all labels", FINETUNE: "full fine-tuning, all labels"}
    labelled = [request.out for request in wanted.with_all_labels()]
    found += [_planned(out.stem, names[out.stem], *fitted[out], speed) for out in labelled]
    for request in few:
        name = request.out.stem.removesuffix("-0")
        config, n = fitted[request.out]
        once = _planned(f"{FEW}: {name}", f"{wanted.seeds} draws of few labels, each", config, n, speed)
        found.append(replace(once, seconds=once.seconds * wanted.seeds))
    n_train, n_all = len(train.names), len(train.names) + len(test.names)
    if EXPERTS not in wanted.skip:
        config = wanted.expert_config(root)
        steps = wanted.experts * config.total_steps(max(1, n_train // wanted.experts))
        seconds = steps * speed.step_s(config) + (wanted.experts + 1) * n_train * speed.embedding_s
        found += [
            Planned(f"cascade, {clusters}", f"{wanted.experts} experts, {steps:,} steps in all", seconds)
            for clusters in CLUSTERS
        ]
    n_spaces = 3 + (wanted.foreign is not None) + len(wanted.with_all_labels())
    n_spaces += (len(CLUSTERS) * wanted.experts + 1) if EXPERTS not in wanted.skip else 0
    n_images = n_spaces * n_all + len(wanted.with_few_labels()) * len(test.names)
    what = f"{n_images:,} embeddings; kNN and linear probes come on top"
    return [*found, Planned(SCORE, what, n_images * speed.embedding_s)]


def _fit(request: Request) -> tuple[Config, int]:
    request, images, _ = choose_images(request)
    return request.config, len(images.names)


def _planned(name: str, what: str, config: Config, n_images: int, speed: Speed) -> Planned:
    steps = config.total_steps(n_images)
    told = f"{what}: {steps:,} steps of {config.batch_size} images ({config.name})"
    return Planned(name, told, steps * speed.step_s(config))


def in_words(seconds: float) -> str:
    """`"40 s"`, `"12 min"`, `"3.4 h"`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _has_cores() -> bool:
    return (os.cpu_count() or 1) > 1


def _seconds(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
