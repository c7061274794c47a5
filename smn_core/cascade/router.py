"""The router of a cascade picks an expert for each row of root embeddings, by a Gaussian mixture.

    u = ((root / |root| - mean) @ components.T) * scale
    expert = argmax over j of  log weights[j] + log N(u; means[j], full covariance of precisions_cholesky[j])

This is scikit-learn's mixture with full covariances, written in numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from smn_core.errors import InvalidCascade

FLOATS = (np.float32, np.float64)
SUM_WITHIN = 1e-3
"""How far the sum of `weights` may be from 1."""


@dataclass(frozen=True, eq=False)
class Router:
    """`mean [d]`, `components [r,d]`, `scale [r]`, `weights [k]`, `means [k,r]`, `precisions_cholesky [k,r,r]`.

    All are float32 or float64. `precisions_cholesky[j]` is upper triangular with a positive diagonal, and the inverse
    of the covariance of component j is `precisions_cholesky[j] @ precisions_cholesky[j].T`.

    Raises:
        InvalidCascade: shapes do not fit each other, or values are not those of a mixture.
    """

    mean: ndarray
    components: ndarray
    scale: ndarray
    weights: ndarray
    means: ndarray
    precisions_cholesky: ndarray

    def __post_init__(self) -> None:
        shapes = {name: array.shape for name, array in self.tensors().items()}
        for name, array in self.tensors().items():
            if array.dtype not in FLOATS:
                raise InvalidCascade(f"router.{name} is {array.dtype}, expected float32 or float64")
            if not np.isfinite(array).all():
                raise InvalidCascade(f"router.{name} has a value that is not finite")
        if len(shapes["mean"]) != 1 or len(shapes["scale"]) != 1 or len(shapes["weights"]) != 1:
            raise InvalidCascade("router.mean, router.scale and router.weights are vectors")
        (d,), (r,), (k,) = shapes["mean"], shapes["scale"], shapes["weights"]
        wanted = {"components": (r, d), "means": (k, r), "precisions_cholesky": (k, r, r)}
        for name, shape in wanted.items():
            if shapes[name] != shape:
                raise InvalidCascade(f"router.{name} is {list(shapes[name])}, expected {list(shape)}")
        if min(d, r, k) == 0:
            raise InvalidCascade("the router is empty")
        if (self.weights <= 0).any() or abs(float(self.weights.sum()) - 1) > SUM_WITHIN:
            raise InvalidCascade("router.weights are not positive numbers that sum to 1")
        diagonal = np.diagonal(self.precisions_cholesky, axis1=1, axis2=2)
        if (diagonal <= 0).any() or np.tril(self.precisions_cholesky, -1).any():
            raise InvalidCascade("router.precisions_cholesky is not upper triangular with a positive diagonal")

    def tensors(self) -> dict[str, ndarray]:
        """All tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def n_experts(self) -> int:
        return len(self.weights)

    @property
    def n_features(self) -> int:
        return len(self.mean)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.tensors().values())


def unit(z: ndarray) -> Float64[ndarray, "n d"]:
    """Scale rows to length 1. A zero row stays zero."""
    z = z.astype(np.float64)
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def reduce(router: Router, root: Float32[ndarray, "n d"]) -> Float64[ndarray, "n r"]:
    """u, the whitened coordinates that the mixture is defined on."""
    centred = unit(root) - router.mean.astype(np.float64)
    return (centred @ router.components.astype(np.float64).T) * router.scale.astype(np.float64)


def route(router: Router, root: Float32[ndarray, "n d"]) -> Int64[ndarray, "n"]:
    """The expert of every row, from 0: the most probable component of the mixture."""
    u = reduce(router, root)
    cholesky = router.precisions_cholesky.astype(np.float64)
    # |(u - mean) @ P|^2, for all components at once: [k,n,r]
    whitened = u @ cholesky - np.einsum("kr,krs->ks", router.means.astype(np.float64), cholesky)[:, None]
    log_det = np.log(np.diagonal(cholesky, axis1=1, axis2=2)).sum(1)
    score = np.log(router.weights.astype(np.float64)) + log_det - 0.5 * np.square(whitened).sum(2).T
    return score.argmax(1).astype(np.int64)


def route_slowly(router: Router, root: Float32[ndarray, "n d"]) -> Int64[ndarray, "n"]:
    """What `route` must agree with: the textbook's density, row by row and component by component."""
    chosen = []
    for row in root.astype(np.float64):
        u = router.scale * (router.components.astype(np.float64) @ (row / np.linalg.norm(row) - router.mean))
        scores = []
        for j in range(router.n_experts):
            precision = router.precisions_cholesky[j].astype(np.float64) @ router.precisions_cholesky[j].T
            away = u - router.means[j]
            density = 0.5 * np.linalg.slogdet(precision)[1] - 0.5 * away @ precision @ away
            scores.append(np.log(float(router.weights[j])) + density)
        chosen.append(int(np.argmax(scores)))
    return np.array(chosen, np.int64)
