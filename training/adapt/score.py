"""Rank candidates without labels: how many neighbours an image keeps between two strong views of everything."""

from __future__ import annotations

import time

from smn_core.engine import Engine
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from training.adapt.look import Clock
from training.evaluation.signs import neighbours_kept
from training.features import embed_view

VIEW_SEEDS = (11, 12)
"""Not those of the map, nor those of the verdict: what ranks candidates must not judge them too."""
NEIGHBOURS = 20
BATCH = 32


class Scorer:
    """Scores masks on images that were learned from; the unseen ones are for the verdict.

    Args:
        engine: of the backbone that the candidates mask.
        images: some of the images; the same ones for every mask.
    """

    def __init__(self, engine: Engine, images: ImageSet, clock: Clock = time.monotonic) -> None:
        self.engine, self._images, self._clock = engine, images, clock
        self.image_s = 0.0
        """Seconds that one image takes to be read and embedded, as last measured."""

    def score(self, mask: TaskMask | None) -> float:
        """The part of an image's neighbours in one view that are its neighbours in the other; None: no mask."""
        digest = mask.digest if mask is not None else None
        if mask is not None:
            self.engine.prepare(mask)
        began, n = self._clock(), len(self._images.names)
        a, b = (embed_view(self.engine, digest, self._images, seed, BATCH, most_images=n) for seed in VIEW_SEEDS)
        self.image_s = (self._clock() - began) / (2 * n)
        if digest is not None:
            self.engine.release(digest)
        return neighbours_kept(a, b, min(NEIGHBOURS, max(1, n // 4)))
