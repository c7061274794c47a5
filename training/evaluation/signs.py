"""Judge embeddings without labels: effective rank, agreement of two views, neighbours kept from another space."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray


def effective_rank(z: Float32[ndarray, "n d"]) -> float:
    """`exp(H(s / sum(s)))` of the singular values s of the centred embeddings; from 1 to D.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = np.linalg.svd(z - z.mean(0), compute_uv=False).astype(np.float64)
    p = values / max(values.sum(), 1e-30)
    return float(np.exp(-(p * np.log(np.maximum(p, 1e-30))).sum()))


def view_agreement(a: Float32[ndarray, "n d"], b: Float32[ndarray, "n d"]) -> float:
    """Fraction of images whose view in `a` is nearest (cosine) to their own view in `b`, among all in `b`."""
    nearest = (normalise(a) @ normalise(b).T).argmax(1)
    return float((nearest == np.arange(len(a))).mean())


def neighbours_kept(a: Float32[ndarray, "n d"], b: Float32[ndarray, "n e"], k: int = 10) -> float:
    """Mean fraction of an image's k nearest neighbours in one space that are among the k nearest in the other."""
    k = min(k, len(a) - 1)
    kept = [len(np.intersect1d(x, y)) for x, y in zip(neighbours(a, k), neighbours(b, k), strict=True)]
    return float(np.mean(kept)) / max(k, 1)


def neighbours(z: Float32[ndarray, "n d"], k: int) -> Int64[ndarray, "n k"]:
    """The k nearest others of every row, by cosine."""
    unit = normalise(z)
    found = []
    for first in range(0, len(unit), 1024):
        similar = unit[first : first + 1024] @ unit.T
        rows = np.arange(len(similar))
        similar[rows, first + rows] = -np.inf
        found.append(np.argpartition(-similar, k - 1, axis=1)[:, :k])
    return np.concatenate(found)


def normalise(z: Float32[ndarray, "n d"]) -> Float32[ndarray, "n d"]:
    """Rows of unit length; a zero row stays zero."""
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
