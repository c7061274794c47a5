"""Rank candidates without labels, by the evidence that decides a verdict, on images that were learned from."""

from __future__ import annotations

import math
import time

from smn_core.engine import Engine
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from training.evaluation.paired import NEIGHBOURS, Measured, Pool, measure, weigh
from training.features import VIEW_SCALE, embed_view
from training.maps import GENTLE_SCALE
from training.progress import Clock

VIEWS = ((11, GENTLE_SCALE), (12, GENTLE_SCALE), (13, VIEW_SCALE), (14, VIEW_SCALE))
"""Seeds and scales of the crops. The seeds are not those of the map, nor those of the verdict: what ranks candidates
must not judge them too."""
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
        self._frozen = self._measure(None)

    @property
    def neighbours_kept(self) -> float:
        """The part of an image's neighbours in one strong view that are so in another, without a mask."""
        return float(self._frozen.signs[NEIGHBOURS].mean()) if not self._frozen.broken else 0.0

    def score(self, mask: TaskMask) -> float:
        """The mean evidence for the mask against the frozen backbone, in deviations; -inf of a space that is broken."""
        self.engine.prepare(mask)
        found = self._measure(mask.digest)
        self.engine.release(str(mask.digest))
        if found.broken or self._frozen.broken:
            return -math.inf
        return float(weigh(self._frozen, found).mean())

    def _measure(self, digest: str | None) -> Measured:
        began, n = self._clock(), len(self._images.names)
        a, b, c, d = (
            embed_view(self.engine, digest, self._images, seed, BATCH, scale=scale, most_images=n)
            for seed, scale in VIEWS
        )
        self.image_s = (self._clock() - began) / (len(VIEWS) * n)
        return measure(Pool((a, b), (c, d)))
