"""Sort images into clusters of root embeddings: 20 whitened principal components, then a Gaussian mixture.

Source: docs/method.md, "Cascade".
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

KINDS = ("mixture", "random")
ROUTER_COMPONENTS = 20
# A direction with less than this part of the largest variance holds rounding errors, which whitening would amplify.
VARIANCE_FLOOR = 1e-9


@dataclass(frozen=True)
class Clusters:
    """A router, and for each image the number of its cluster, counted from 0."""

    router: Router
    of_each: Int64[ndarray, "n"]

    @property
    def sizes(self) -> list[int]:
        return np.bincount(self.of_each, minlength=self.router.n_experts).tolist()


def cluster(root: Float32[ndarray, "n d"], n_experts: int, by: str = "mixture", seed: int = 0) -> Clusters:
    """Cluster images by their root embeddings: fit a router, and ask it, in the precision of its file, for every image.

    `by="random"` is the control: images are dealt out at random to clusters of the same sizes. The router stays the
    mixture's.

    Raises:
        InvalidArgument: an unknown kind of clusters.
        InvalidData: fewer images than components, or an empty cluster.
    """
    if by not in KINDS:
        raise InvalidArgument(f"unknown clusters {by!r}: choose {', '.join(KINDS)}")
    n, d = root.shape
    n_reduced = min(ROUTER_COMPONENTS, d)
    if n <= max(n_reduced, n_experts):
        raise InvalidData(f"{n} images are too few to split: a router of {n_reduced} components needs more")
    router = _fit(root, n_experts, n_reduced, seed)
    clusters = route(router, root)
    if by == "random":
        clusters = np.random.default_rng(seed).permutation(clusters)
    found = Clusters(router, clusters)
    if empty := [j + 1 for j, size in enumerate(found.sizes) if size == 0]:
        raise InvalidData(f"cluster {empty[0]} is empty (sizes {found.sizes}): take fewer --experts, or another --seed")
    return found


def _fit(root: Float32[ndarray, "n d"], n_experts: int, n_reduced: int, seed: int) -> Router:
    pca = PCA(n_reduced, svd_solver="full").fit(unit(root))
    variance = np.maximum(pca.explained_variance_, VARIANCE_FLOOR * max(pca.explained_variance_[0], 1e-30))
    scale = 1 / np.sqrt(variance)
    mixture = GaussianMixture(n_experts, covariance_type="full", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are enough: further ones move few images
        mixture.fit(((unit(root) - pca.mean_) @ pca.components_.T) * scale)
    return Router(
        mean=pca.mean_.astype(np.float32),
        components=pca.components_.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=np.maximum(mixture.weights_, 1e-12).astype(np.float32),
        means=mixture.means_.astype(np.float32),
        precisions_cholesky=np.triu(mixture.precisions_cholesky_).astype(np.float32),
    )


def measure_purity(clusters: Int64[ndarray, "n"], labels: Int64[ndarray, "n"], n_clusters: int) -> dict[str, Any]:
    """The share of images with the commonest label of their cluster, over all images and for each cluster."""
    most = [np.bincount(labels[clusters == j]).max(initial=0) for j in range(n_clusters)]
    sizes = np.bincount(clusters, minlength=n_clusters)
    return {
        "all": float(sum(most) / len(labels)),
        "clusters": [float(m / max(s, 1)) for m, s in zip(most, sizes, strict=True)],
    }
