"""Look at images through several masks: every image is read once, and masks that differ in their map share forwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.engine import Engine
from smn_core.errors import InvalidData
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.verbs.offline import OnBatch
from training.evaluation.controls import strip
from training.evaluation.labelled import require_labels, score
from training.evaluation.paired import EVIDENCE, SIGNS, Change, Measured, Pool, compare, measure, weigh
from training.evaluation.rule import ALL, SEEN, UNSEEN, Changes
from training.features import Features, embed_each, embed_view_each, sample
from training.maps import GENTLE_SCALE

FEWEST_IMAGES = 30
MOST_IMAGES = 500
"""Of the seen images, and of the unseen ones."""
STRONG_SCALE = (0.4, 1.0)
FIRST_VIEW, N_VIEWS = 10_000, 4
"""Seeds of the crops: none of them fitted a map or ranked a candidate."""


class Spaces:
    """The embeddings of all views through every mask that is looked at, each made once; maps are applied after."""

    def __init__(self, engine: Engine, masks: Sequence[TaskMask], flipped: Sequence[TaskMask]) -> None:
        self._engine = engine
        self._judged = self._keys_of(masks)
        self._all = self._judged | self._keys_of(flipped)
        self._pools: dict[str | None, Pool] = {}
        self._few: dict[str | None, Features] = {}
        self.n_seen = self.n_unseen = self.n_unreadable = 0

    @staticmethod
    def _keys_of(masks: Sequence[TaskMask]) -> dict[str | None, TaskMask | None]:
        found: dict[str | None, TaskMask | None] = {None: None}
        for mask in masks:
            bare = strip(mask)
            found[bare.digest if bare is not None else None] = bare
        return found

    def __enter__(self) -> Spaces:
        for mask in self._all.values():
            if mask is not None:
                self._engine.prepare(mask)
        return self

    def __exit__(self, *_: object) -> None:
        for key in self._all:
            if key is not None:
                self._engine.release(key)

    def look(self, seen: ImageSet, unseen: ImageSet | None, batch_size: int, seed: int, on_batch: OnBatch) -> None:
        """Embed the views of the images, seen ones first.

        Raises:
            InvalidData: too few can be read.
        """
        keys = list(self._all)
        parts = [sample(images, MOST_IMAGES) for images in (seen, unseen) if images is not None]
        _require_enough(sum(len(part.names) for part in parts))
        views: list[list[list[Features]]] = []
        for number, scale in enumerate((GENTLE_SCALE, GENTLE_SCALE, STRONG_SCALE, STRONG_SCALE)):
            view = FIRST_VIEW + N_VIEWS * seed + number
            views.append(
                [
                    embed_view_each(self._engine, keys, part, view, batch_size, scale=scale, on_batch=on_batch)
                    for part in parts
                ]
            )
            counts = [len(found[0].kept) for found in views[0]]
            _require_enough(sum(counts))
        self.n_seen, self.n_unseen = counts[0], sum(counts[1:])
        self.n_unreadable = sum(len(found[0].skipped) for found in views[0])
        for place, key in enumerate(keys):
            a, b, c, d = (np.concatenate([part[place].z for part in view]) for view in views)
            self._pools[key] = Pool((a, b), (c, d))

    def look_at_labelled(self, images: ImageSet, batch_size: int, on_batch: OnBatch) -> None:
        """Embed labelled images.

        Raises:
            InvalidData: too few of a class can be read.
        """
        keys = list(self._judged)
        found = embed_each(self._engine, keys, images, batch_size, on_batch)
        self._few = dict(zip(keys, found, strict=True))
        require_labels(found[0].labels, images.classes)

    def measure(self, mask: TaskMask | None) -> Measured:
        """The signs of a mask's space, or of the frozen backbone's."""
        pool = self._pools[_key_of(mask)]
        a, b, c, d = (_map(mask, z) for z in (*pool.gentle, *pool.strong))
        return measure(Pool((a, b), (c, d)))

    def compare(self, before: Measured, after: Measured) -> Changes:
        """The changes of all signs and the evidence, over all images and over each part."""
        if before.broken or after.broken:
            return {}
        parts = {ALL: slice(None), SEEN: slice(0, self.n_seen)}
        if self.n_unseen:
            parts[UNSEEN] = slice(self.n_seen, None)
        found = {
            sign: {name: compare(before.signs[sign][part], after.signs[sign][part]) for name, part in parts.items()}
            for sign in SIGNS
        }
        evidence = weigh(before, after)
        nothing = np.zeros(len(evidence))
        return {**found, EVIDENCE: {name: compare(nothing[part], evidence[part]) for name, part in parts.items()}}

    def compare_labels(self, mask: TaskMask) -> dict[str, Change]:
        """The change of the scores on labelled images; {} without them."""
        if not self._few:
            return {}
        few = self._few[None]
        labels = require_labels(few.labels)
        before, after = score(few.z, labels), score(_map(mask, self._few[_key_of(mask)].z), labels)
        return {name: compare(before[name], after[name]) for name in before}


def _require_enough(n_images: int) -> None:
    if n_images < FEWEST_IMAGES:
        raise InvalidData(f"{n_images} readable images are too few for a verdict: it takes {FEWEST_IMAGES} at least")


def _key_of(mask: TaskMask | None) -> str | None:
    bare = strip(mask) if mask is not None else None
    return bare.digest if bare is not None else None


def _map(mask: TaskMask | None, z: Float32[ndarray, "n d"]) -> Float32[ndarray, "n d"]:
    return z if mask is None or mask.affine is None else mask.affine.apply(z)
