"""Rank candidates without labels, by the neighbours that images keep, on images that were learned from."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Score:
    """What a mask changes, in the mean over images.

    Args:
        neighbours: the change of the part of its neighbours that an image keeps between two strong views, -1 to 1.
        evidence: for the mask against the frozen backbone, in deviations (`weigh`).
    """

    neighbours: float
    evidence: float

    @property
    def value(self) -> float:
        """Higher is better; below 0 where the neighbours or the evidence speak against the mask.

        Evidence tells how surely a mask changes a space, not how much: thirty flips that move every image a little
        have as much of it as a thousand that help more. So it only keeps a mask out, and the neighbours rank.
        """
        return self.neighbours if self.evidence >= 0 else min(self.neighbours, self.evidence)


BROKEN = Score(-math.inf, -math.inf)


class Scorer:
    """Scores masks on images that were learned from; the unseen ones are for the verdict.

    Args:
        engine: of the backbone that the candidates mask.
        images: some of the images; the same ones for every mask.
    """

    def __init__(self, engine: Engine, images: ImageSet, clock: Clock = time.monotonic) -> None:
        self.engine, self._images, self._clock = engine, images, clock
        self._image_s: list[float] = []
        self._frozen = self._measure(None)

    @property
    def image_s(self) -> float:
        """Seconds that one image takes to be read and embedded: the median over all masks so far.

        The last one alone would let a minute in which the machine was busy decide by how few images the map is fitted
        and the verdict given.
        """
        return statistics.median(self._image_s)

    @property
    def neighbours_kept(self) -> float:
        """The part of an image's neighbours in one strong view that are so in another, without a mask."""
        return float(self._frozen.signs[NEIGHBOURS].mean()) if not self._frozen.broken else 0.0

    def score(self, mask: TaskMask) -> Score:
        """The mask's score against the frozen backbone; `BROKEN` for a space that is broken."""
        self.engine.prepare(mask)
        found = self._measure(mask.digest)
        self.engine.release(str(mask.digest))
        if found.broken or self._frozen.broken:
            return BROKEN
        kept = (found.signs[NEIGHBOURS] - self._frozen.signs[NEIGHBOURS]).mean()
        return Score(float(kept), float(weigh(self._frozen, found).mean()))

    def _measure(self, digest: str | None) -> Measured:
        began, n = self._clock(), len(self._images.names)
        a, b, c, d = (
            embed_view(self.engine, digest, self._images, seed, BATCH, scale=scale, most_images=n)
            for seed, scale in VIEWS
        )
        self._image_s.append((self._clock() - began) / (len(VIEWS) * n))
        return measure(Pool((a, b), (c, d)))
