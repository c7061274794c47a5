"""What views of images say of a space, image by image, and the change of it between two spaces.

The same images in the same crops go through both spaces, so a change is a mean of differences, and its standard error
is over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from training.evaluation.signs import effective_rank, neighbours, normalise

AGREEMENT, MARGIN, NEIGHBOURS = "agreement", "margin", "neighbours"
SIGNS = (AGREEMENT, MARGIN, NEIGHBOURS)
"""What is measured in one space."""
EVIDENCE = "evidence"
"""What is measured between two spaces, and decides: the changes of margin and neighbours together."""
MOST_Z = 99.0
"""z of a change that is the same for every image: its standard error is 0."""
SHARED = 20
RANK_FALLS_TO = 0.1
CONSTANT = 1e-6
SAME = 1e-12


@dataclass(frozen=True)
class Change:
    """The mean over n images before and after, their difference, and its standard error."""

    before: float
    after: float
    change: float
    error: float
    n: int

    @property
    def z(self) -> float:
        """The change in standard errors; within +-`MOST_Z`."""
        if self.change == 0:
            return 0.0
        return float(np.clip(self.change / max(self.error, 1e-30), -MOST_Z, MOST_Z))

    def as_json(self) -> dict[str, float]:
        values = {"before": self.before, "after": self.after, "change": self.change, "error": self.error, "z": self.z}
        return {name: round(value, 6) for name, value in values.items()} | {"n": self.n}


def compare(before: Float64[ndarray, "n"], after: Float64[ndarray, "n"]) -> Change:
    """The paired change of a number that every image has in both spaces."""
    n, apart = len(before), after - before
    error = float(apart.std(ddof=1)) / np.sqrt(n) if n > 1 else 0.0
    return Change(float(before.mean()), float(after.mean()), float(apart.mean()), float(error), n)


@dataclass(frozen=True)
class Pool:
    """One space: embeddings of two gentle and two strong crops of each of n images. Equal rows are of one image."""

    gentle: tuple[Float32[ndarray, "n d"], Float32[ndarray, "n d"]]
    strong: tuple[Float32[ndarray, "n d"], Float32[ndarray, "n d"]]


@dataclass(frozen=True)
class Measured:
    """The signs of one space: numbers by sign and image, the effective rank, and what is broken in words."""

    signs: Mapping[str, Float64[ndarray, "n"]]
    rank: float
    broken: str


def measure(pool: Pool) -> Measured:
    """Measure a space.

    agreement: whether the nearest of all other views is the image's own: mean of both directions, 0, .5 or 1.
    margin: how much nearer the own view is than the best other one, in deviations of the others (which makes spaces
        of different scale comparable); mean of both directions.
    neighbours: the part of an image's `SHARED` nearest neighbours in one strong view that are so in the other.
    """
    for z in (*pool.gentle, *pool.strong):
        if not np.isfinite(z).all():
            return Measured({}, 0.0, "an embedding is not finite")
    if _is_constant(pool.gentle[0]):
        return Measured({}, 1.0, "all embeddings are equal")
    similar = (normalise(pool.gentle[0]) @ normalise(pool.gentle[1]).T).astype(np.float64)
    there, back = find_own(similar), find_own(similar.T)
    signs = {name: (there[name] + back[name]) / 2 for name in (AGREEMENT, MARGIN)}
    return Measured(signs | {NEIGHBOURS: share_neighbours(*pool.strong)}, effective_rank(pool.gentle[0]), "")


def weigh(before: Measured, after: Measured) -> Float64[ndarray, "n"]:
    """The evidence of every image that the second space is the better one: 0 where nothing changed.

    The changes of `margin` and `neighbours`, each in deviations over images, added. A mask that spoils a space loses
    one of them or both; one that helps seldom loses either (docs/results.md, "The test without labels").
    """
    total = np.zeros(len(before.signs[MARGIN]))
    for sign in (MARGIN, NEIGHBOURS):
        apart = after.signs[sign] - before.signs[sign]
        deviation = float(apart.std())
        # A change that is the same for every image counts as one deviation: it has no error, and is no chance.
        total += apart / deviation if deviation > SAME else np.sign(apart) * (np.abs(apart) > SAME)
    return total


def find_own(similar: Float64[ndarray, "n n"]) -> dict[str, Float64[ndarray, "n"]]:
    """agreement and margin of every row, whose own view is on the diagonal."""
    own = np.diag(similar).copy()
    others = similar.copy()
    np.fill_diagonal(others, -np.inf)
    best = others.max(1)
    np.fill_diagonal(others, np.nan)
    spread = np.maximum(np.nanstd(others, axis=1), 1e-12)
    return {AGREEMENT: (own > best).astype(np.float64), MARGIN: (own - best) / spread}


def share_neighbours(a: Float32[ndarray, "n d"], b: Float32[ndarray, "n d"]) -> Float64[ndarray, "n"]:
    """The part of every image's nearest neighbours in one view that are its neighbours in the other."""
    k = max(1, min(SHARED, len(a) // 4))
    near, far = (_mark(neighbours(z, k), len(a)) for z in (a, b))
    return (near & far).sum(1) / k


def _mark(found: Int64[ndarray, "n k"], n: int) -> Bool[ndarray, "n n"]:
    marked = np.zeros((n, n), np.bool_)
    np.put_along_axis(marked, found, True, axis=1)
    return marked


def _is_constant(z: Float32[ndarray, "n d"]) -> bool:
    mean = z.mean(0)
    return bool(np.abs(z - mean).max() <= CONSTANT * max(float(np.abs(mean).max()), 1e-30))


def find_collapse(before: Measured, after: Measured) -> str:
    """What is broken in a space beside another one, in words; "" where nothing is."""
    if after.broken:
        return after.broken
    if after.rank < RANK_FALLS_TO * before.rank:
        return f"the effective rank fell from {before.rank:.0f} to {after.rank:.1f}"
    return ""
