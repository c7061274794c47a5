"""Exact search among vectors, and near-copies among them, by cosine similarity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

ROWS_AT_ONCE = 256
"""Images that are compared with all others together: 100,000 others take 100 MB then."""


@dataclass(frozen=True)
class Group:
    """An image, and those that are its near-copies, with their similarity to it, the most similar first."""

    image: str
    copies: list[tuple[str, float]]


def lengths_of(vectors: Float32[ndarray, "n d"]) -> Float32[ndarray, "n"]:
    """The length of each vector."""
    return np.asarray(np.linalg.norm(vectors, axis=1), np.float32)


def unit(vectors: Float32[ndarray, "n d"]) -> Float32[ndarray, "n d"]:
    """Vectors brought to length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def nearest_of(
    blocks: Iterable[tuple[list[str], Float32[ndarray, "n d"]]], vector: Float32[ndarray, "d"], top: int
) -> list[tuple[str, float]]:
    """The `top` nearest of all, the most similar first, then by path; only one block is held at a time."""
    best: list[tuple[str, float]] = []
    asked = unit(vector[None])[0]
    for paths, vectors in blocks:
        near = unit(vectors) @ asked
        kept = np.argpartition(-near, top)[:top] if len(near) > top else np.arange(len(near))
        best += [(paths[i], float(near[i])) for i in kept]
        best = sorted(best, key=lambda pair: (-pair[1], pair[0]))[:top]
    return best


def near_copies(
    paths: Sequence[str],
    vectors: Float32[ndarray, "n d"],
    least: float,
    on_batch: Callable[[int], None] = lambda _: None,
) -> list[Group]:
    """Groups of images that resemble each other.

    In order of paths, each image that is in no group yet gathers those after it that are in none and whose similarity
    to it is at least `least`. So each copy resembles the image of its group, and no chain joins what differs.

    Args:
        on_batch: called with how many images more were compared.
    """
    order = sorted(range(len(paths)), key=paths.__getitem__)
    z = unit(vectors[order])
    free = np.ones(len(order), bool)
    groups = []
    for first in range(0, len(order), ROWS_AT_ONCE):
        block = z[first : first + ROWS_AT_ONCE] @ z[first:].T
        alike = block >= least
        for row in np.flatnonzero(free[first : first + len(block)]):
            if not free[first + row]:  # taken by a row before it
                continue
            others = np.flatnonzero(alike[row, row + 1 :] & free[first + row + 1 :]) + row + 1
            if len(others):
                free[first + others] = False
                copies = [(paths[order[first + other]], float(block[row, other])) for other in others]
                groups.append(Group(paths[order[first + row]], sorted(copies, key=lambda pair: (-pair[1], pair[0]))))
        on_batch(len(block))
    return groups
