"""Split images into clusters by their root embeddings: 20 whitened principal components and a Gaussian mixture.

Source: docs/method.md, "Split".
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from smn_core.cascade.router import Router, route, unit
from smn_core.errors import InvalidArgument, InvalidData

SPLITS = ("mixture", "random")
ROUTER_COMPONENTS = 20
# A direction with less than this part of the largest variance is rounding noise. Whitening would amplify it.
VARIANCE_FLOOR = 1e-9


@dataclass(frozen=True)
class Split:
    """The router, and the cluster of every image, from 0."""

    router: Router
    clusters: Int64[ndarray, "n"]

    @property
    def sizes(self) -> list[int]:
        return np.bincount(self.clusters, minlength=self.router.n_experts).tolist()


def split(root: Float32[ndarray, "n d"], n_experts: int, by: str = "mixture", seed: int = 0) -> Split:
    """Cluster images by their root embeddings. The router, rounded as it is stored, picks the cluster of every image.

    `by="random"` is the control: it deals the same cluster sizes out at random. The router stays the mixture's.

    Raises:
        InvalidArgument: an unknown way to split.
        InvalidData: there are too few images, or a cluster is empty.
    """
    if by not in SPLITS:
        raise InvalidArgument(f"unknown split {by!r}: choose {', '.join(SPLITS)}")
    n, d = root.shape
    n_reduced = min(ROUTER_COMPONENTS, d)
    if n <= max(n_reduced, n_experts):
        raise InvalidData(f"{n} images are too few to split: a router of {n_reduced} components needs more")
    router = _fit(root, n_experts, n_reduced, seed)
    clusters = route(router, root)
    if by == "random":
        clusters = np.random.default_rng(seed).permutation(clusters)
    found = Split(router, clusters)
    if empty := [j + 1 for j, size in enumerate(found.sizes) if size == 0]:
        raise InvalidData(f"cluster {empty[0]} is empty (sizes {found.sizes}): take fewer --experts, or another --seed")
    return found


def _fit(root: Float32[ndarray, "n d"], n_experts: int, n_reduced: int, seed: int) -> Router:
    pca = PCA(n_reduced, svd_solver="full").fit(unit(root))
    variance = np.maximum(pca.explained_variance_, VARIANCE_FLOOR * max(pca.explained_variance_[0], 1e-30))
    scale = 1 / np.sqrt(variance)
    mixture = GaussianMixture(n_experts, covariance_type="full", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it may stop after 100 iterations
        mixture.fit(((unit(root) - pca.mean_) @ pca.components_.T) * scale)
    return Router(
        mean=pca.mean_.astype(np.float32),
        components=pca.components_.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=np.maximum(mixture.weights_, 1e-12).astype(np.float32),
        means=mixture.means_.astype(np.float32),
        precisions_cholesky=np.triu(mixture.precisions_cholesky_).astype(np.float32),
    )


def purity(clusters: Int64[ndarray, "n"], labels: Int64[ndarray, "n"], n_clusters: int) -> dict[str, Any]:
    """Share of images whose label is the commonest of their cluster: of all images, and of each cluster's."""
    most = [np.bincount(labels[clusters == j]).max(initial=0) for j in range(n_clusters)]
    sizes = np.bincount(clusters, minlength=n_clusters)
    return {
        "all": float(sum(most) / len(labels)),
        "clusters": [float(m / max(s, 1)) for m, s in zip(most, sizes, strict=True)],
    }
