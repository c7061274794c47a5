"""Clusters of root embeddings: scikit-learn's mixture, as the router in the file says it."""

from __future__ import annotations

import numpy as np
import pytest

from smn_core.cascade.router import route
from smn_core.errors import InvalidArgument, InvalidData
from training.cascade.clusters import cluster, measure_purity

D, K = 5, 3


@pytest.fixture(scope="module")
def clouds() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(K), [60, 90, 120])
    centres = 6 * rng.standard_normal((K, D))
    return (centres[labels] + rng.standard_normal((270, D))).astype(np.float32), labels


def test_clouds_far_apart_are_the_clusters(clouds):
    z, labels = clouds
    found = cluster(z, K)
    assert sorted(found.sizes) == [60, 90, 120]
    assert measure_purity(found.of_each, labels, K) == {"all": 1.0, "clusters": [1.0] * K}


def test_the_clusters_are_what_the_stored_router_says(clouds):
    found = cluster(clouds[0], K)
    assert (route(found.router, clouds[0]) == found.of_each).all()
    assert {array.dtype for array in found.router.tensors().values()} == {np.dtype(np.float32)}


def test_equal_seeds_give_equal_splits(clouds):
    a, b = cluster(clouds[0], 5, seed=3), cluster(clouds[0], 5, seed=3)
    assert (a.of_each == b.of_each).all()
    assert all((a.router.tensors()[name] == array).all() for name, array in b.router.tensors().items())


def test_the_random_control_has_clusters_of_the_same_sizes(clouds):
    z, labels = clouds
    mixture, random = cluster(z, K), cluster(z, K, "random")
    assert random.sizes == mixture.sizes
    assert measure_purity(random.of_each, labels, K)["all"] < 0.6
    assert (route(random.router, z) == mixture.of_each).all()


def test_fewer_images_than_the_router_has_components_are_refused():
    z = np.random.default_rng(0).standard_normal((20, 24)).astype(np.float32)
    with pytest.raises(InvalidData, match="20 images are too few to split: a router of 20 components"):
        cluster(z, K)


def test_an_empty_cluster_is_refused(clouds, monkeypatch):
    """Nothing makes scikit-learn give one for certain: the router is made to."""
    import training.cascade.clusters as module

    monkeypatch.setattr(module, "route", lambda router, z: np.minimum(route(router, z), 1))
    with pytest.raises(InvalidData, match=r"cluster 3 is empty .*fewer --experts, or another --seed"):
        cluster(clouds[0], K)


def test_unknown_clusters_are_refused(clouds):
    with pytest.raises(InvalidArgument, match="unknown clusters 'alphabet'"):
        cluster(clouds[0], K, "alphabet")
