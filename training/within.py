"""The map that needs no training: embeddings whitened by the scatter of an image's own views.

Two crops of one image differ in what does not matter, so the directions in which they scatter are noise. With views
`z[v, i]` of image i and `m[i]` their mean:

    Sw     = sum over i, v of (z[v, i] - m[i]) (z[v, i] - m[i]).T / (n * (v - 1))
    Sw'    = (1 - shrink) * Sw + shrink * trace(Sw) / d * I
    z'     = Sw'^(-power / 2) (z - mean) / length

`power` 0 only centres, 1 whitens in full. `length` is the mean length of what is divided, so that embeddings come out
with length 1 in the mean: cosines do not see it, and a linear classifier with a fixed penalty is not left without any.
docs/method.md, "The map within images".
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from smn_core.affine import Affine
from smn_core.errors import InvalidArgument, InvalidData

POWER = 0.35
SHRINK = 0.3
SMALLEST = 1e-12


def scatter_within(views: Float32[ndarray, "v n d"]) -> Float64[ndarray, "d d"]:
    """The mean over images of the covariance of an image's embeddings over its views.

    Raises:
        InvalidArgument: fewer than two views.
    """
    n_views, n_images, d = views.shape
    if n_views < 2:
        raise InvalidArgument("the scatter within images takes two views at least")
    apart = (views - views.mean(0, keepdims=True)).astype(np.float64).reshape(-1, d)
    return apart.T @ apart / (n_images * (n_views - 1))


def fit_within(
    views: Float32[ndarray, "v n d"], mean: Float32[ndarray, "d"], power: float = POWER, shrink: float = SHRINK
) -> Affine:
    """The matrix form of the map, float32; embeddings come out with length 1 in the mean.

    Args:
        views: embeddings of v views of n images.
        mean: of the embeddings of whole images.

    Raises:
        InvalidArgument: fewer than two views, `power` or `shrink` outside [0, 1].
        InvalidData: the views of every image are equal: there is no scatter to whiten by.
    """
    if not (0 <= power <= 1 and 0 <= shrink <= 1):
        raise InvalidArgument(f"power {power} and shrink {shrink} must lie in [0, 1]")
    scatter = scatter_within(views)
    d = len(scatter)
    variance = float(np.trace(scatter)) / d
    if not variance > SMALLEST:
        raise InvalidData("all views of an image have equal embeddings: the images have nothing to whiten by")
    values, vectors = np.linalg.eigh((1 - shrink) * scatter + shrink * variance * np.eye(d))
    scales = np.maximum(values / variance, SMALLEST) ** (-power / 2)
    matrix = (vectors * scales) @ vectors.T
    length = _mean_length((views.reshape(-1, d) - mean) @ matrix.T)
    return Affine(mean.astype(np.float32), matrix=(matrix / length).astype(np.float32))


def fit_diagonal(z: Float32[ndarray, "n d"], power: float = 1.0) -> Affine:
    """The diagonal form: every feature centred and divided by its deviation to the power `power`; length 1 in the mean.

    A feature that does not vary keeps its scale: dividing by rounding would make noise a feature.

    Raises:
        InvalidData: fewer than two rows, or no feature varies.
    """
    if len(z) < 2:
        raise InvalidData("a map is fitted on two embeddings at least")
    deviation = z.std(0, dtype=np.float64)
    largest = float(deviation.max())
    if not largest > SMALLEST:
        raise InvalidData("all embeddings are equal: there is no map to fit")
    typical = float(np.median(deviation[deviation > 1e-6 * largest]))
    varies = deviation > 1e-6 * largest
    scale = np.where(varies, (np.where(varies, deviation, 1.0) / typical) ** -power, 1.0)
    mean = z.mean(0, dtype=np.float64)
    return Affine(mean.astype(np.float32), scale=(scale / _mean_length((z - mean) * scale)).astype(np.float32))


def _mean_length(z: Float64[ndarray, "n d"]) -> float:
    return max(float(np.linalg.norm(z, axis=1).mean()), SMALLEST)
