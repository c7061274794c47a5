"""Exact neighbours, block by block, and groups of near-copies."""

import numpy as np

from smn.search.near import near_copies, nearest_of


def test_the_nearest_of_blocks_are_the_nearest_of_all():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 16)).astype(np.float32)
    paths = [f"{i:03}" for i in range(300)]
    asked = vectors[7] + 0.1 * rng.standard_normal(16).astype(np.float32)
    near = vectors @ asked / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked))
    blocks = ((paths[i : i + 37], vectors[i : i + 37]) for i in range(0, 300, 37))
    found = nearest_of(blocks, asked, 10)
    assert [path for path, _ in found] == [paths[i] for i in np.argsort(-near)[:10]]
    np.testing.assert_allclose([value for _, value in found], np.sort(near)[::-1][:10], rtol=1e-5)


def test_fewer_images_than_asked_for_are_all_found_and_equal_ones_come_by_path():
    vectors = np.ones((3, 2), np.float32)
    assert [path for path, _ in nearest_of([(["c", "a", "b"], vectors)], vectors[0], 10)] == ["a", "b", "c"]


def angle(degrees):
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def test_a_copy_resembles_the_image_of_its_group_and_no_chain_joins_what_differs():
    vectors = np.array([angle(20), angle(0), angle(10), angle(90), angle(91)], np.float32)
    groups = near_copies(["c", "a", "b", "d", "e"], vectors, float(np.cos(np.radians(12))))
    # b is 10 degrees from a and from c; c is 20 from a, so it is no copy of a, and b is taken.
    assert [(group.image, [path for path, _ in group.copies]) for group in groups] == [("a", ["b"]), ("d", ["e"])]
    np.testing.assert_allclose(groups[0].copies[0][1], np.cos(np.radians(10)), rtol=1e-5)


def test_groups_reach_over_blocks_and_a_zero_vector_is_like_nothing():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((700, 64)).astype(np.float32)
    vectors[690], vectors[699] = 3 * vectors[2], vectors[400]
    vectors[5] = vectors[6] = 0
    counted = []
    groups = near_copies([f"{i:03}" for i in range(700)], vectors, 0.999, counted.append)
    assert [(group.image, group.copies[0][0]) for group in groups] == [("002", "690"), ("400", "699")]
    assert sum(counted) == 700
