"""The linear map from one space to another, fitted on images that were embedded in both, and what it costs.

    z_to ~ (z_from - mean_from) @ matrix.T + mean_to
    matrix = argmin  sum over rows |(z_to - mean_to) - matrix (z_from - mean_from)|^2
                     + strength * trace / d * |matrix - unit I|^2

The penalty draws the matrix to the identity, in the new space's unit of length: with few images an old vector keeps its
direction. A mask with a map may have vectors of length 1 where the backbone's have length 45.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from smn_core.errors import InvalidData
from training.evaluation.signs import normalise

STRENGTHS = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""In units of the mean variance of the old vectors."""
FEWEST_ROWS = 20
NEIGHBOURS = 10


@dataclass(frozen=True)
class LinearMap:
    """`apply(z) = (z - mean_from) @ matrix.T + mean_to`."""

    matrix: Float32[ndarray, "d e"]
    mean_from: Float32[ndarray, "e"]
    mean_to: Float32[ndarray, "d"]

    def apply(self, z: Float32[ndarray, "n e"]) -> Float32[ndarray, "n d"]:
        """Move rows to the new space."""
        return (z - self.mean_from) @ self.matrix.T + self.mean_to


def fit_ridge(old: Float32[ndarray, "n d"], new: Float32[ndarray, "n d"], strength: float) -> LinearMap:
    """The map that fits rows of `old` to those of `new`, drawn to a multiple of the identity by `strength`.

    The multiple is how much farther the new rows are from their mean.

    Raises:
        InvalidData: fewer than two rows.
    """
    if len(old) < 2:
        raise InvalidData("a map between spaces is fitted on two images at least")
    mean_from, mean_to = old.mean(0, dtype=np.float64), new.mean(0, dtype=np.float64)
    x, y = old - mean_from, new - mean_to
    gram, d = x.T @ x, x.shape[1]
    penalty = strength * max(float(np.trace(gram)) / d, 1e-12)
    unit = float(np.sqrt((y * y).sum() / max(float(np.trace(gram)), 1e-12)))
    # y - unit x is what the multiple of the identity leaves; the ridge of it is drawn to 0.
    matrix = unit * np.eye(d) + np.linalg.solve(gram + penalty * np.eye(d), x.T @ (y - unit * x)).T
    return LinearMap(matrix.astype(np.float32), mean_from.astype(np.float32), mean_to.astype(np.float32))


@dataclass(frozen=True)
class Translation:
    """A map, its strength, and recall@10 on images that it was not fitted on, beside that of the old vectors."""

    map: LinearMap
    strength: float
    n_fitted: int
    n_held_out: int
    recall: float
    recall_untouched: float


def translate(
    old: Float32[ndarray, "n d"],
    new: Float32[ndarray, "n d"],
    held_old: Float32[ndarray, "m d"],
    held_new: Float32[ndarray, "m d"],
) -> Translation:
    """Fit a map with the strength that is best on a fifth of the rows, then on all; score it on the held-out rows.

    Raises:
        InvalidData: fewer than `FEWEST_ROWS` rows to fit on, or fewer than `NEIGHBOURS` + 2 to score on.
    """
    require_enough(len(old), len(held_old), "readable images")
    strength = choose_strength(old, new)
    fitted = fit_ridge(old, new, strength)
    return Translation(
        fitted, strength, len(old), len(held_old),
        recall=recall_at(held_new, fitted.apply(held_old)), recall_untouched=recall_at(held_new, held_old),
    )  # fmt: skip


def require_enough(n_fitted: int, n_held_out: int, of: str) -> None:
    """Refuse rows that are too few to fit a map on, or to measure it on.

    Raises:
        InvalidData: it says how many there are, and how many each takes.
    """
    if n_fitted < FEWEST_ROWS or n_held_out < NEIGHBOURS + 2:
        raise InvalidData(
            f"too few {of}: {n_fitted} to fit a map between spaces on, which takes {FEWEST_ROWS}, "
            f"and {n_held_out} to measure recall@{NEIGHBOURS} on, which takes {NEIGHBOURS + 2}"
        )


def choose_strength(old: Float32[ndarray, "n d"], new: Float32[ndarray, "n d"]) -> float:
    """The strength with the smallest squared error on a random fifth of the rows, when fitted on the rest."""
    order = np.random.default_rng(0).permutation(len(old))
    held, rest = order[: len(old) // 5], order[len(old) // 5 :]
    errors = [float(((fit_ridge(old[rest], new[rest], s).apply(old[held]) - new[held]) ** 2).mean()) for s in STRENGTHS]
    return STRENGTHS[int(np.argmin(errors))]


def recall_at(new: Float32[ndarray, "n d"], index: Float32[ndarray, "n d"], k: int = NEIGHBOURS) -> float:
    """How many of a new vector's k nearest others (cosine) an index finds, as a mean fraction.

    Queries are rows of `new`; the true answers are those among the new vectors themselves.
    """
    true, found = _nearest(new, new, k), _nearest(new, index, k)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(true, found, strict=True)]
    return float(np.mean(shared)) / k


def _nearest(queries: Float32[ndarray, "n d"], index: Float32[ndarray, "n d"], k: int) -> Int64[ndarray, "n k"]:
    similar = (normalise(queries) @ normalise(index).T).astype(np.float64)
    np.fill_diagonal(similar, -np.inf)  # the query's own image
    return np.argpartition(-similar, k - 1, axis=1)[:, :k]
