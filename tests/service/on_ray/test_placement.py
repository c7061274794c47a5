"""Placement: a mask stays where it is, a hot one spreads, a replica that goes moves its own masks alone."""

from collections import Counter

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")

from service.on_ray.placement import UNSHARED, by_digest, in_order

REPLICAS = ("a1", "b2", "c3", "d4")
DIGESTS = [f"sha256:{i:064x}" for i in range(400)]
IDLE = dict.fromkeys(REPLICAS, 0)


def test_an_idle_mask_always_goes_to_the_same_replica():
    assert all(in_order(digest, IDLE) == by_digest(digest, REPLICAS) for digest in DIGESTS)
    assert by_digest(DIGESTS[0], REPLICAS) == by_digest(DIGESTS[0], REPLICAS[::-1])


def test_masks_are_spread_evenly_over_replicas():
    held = Counter(by_digest(digest, REPLICAS)[0] for digest in DIGESTS)
    assert set(held) == set(REPLICAS) and max(held.values()) < 1.4 * len(DIGESTS) / len(REPLICAS)


def test_a_replica_that_goes_moves_only_the_masks_that_it_had():
    for digest in DIGESTS:
        before, after = by_digest(digest, REPLICAS), by_digest(digest, REPLICAS[1:])
        assert after == [replica for replica in before if replica != REPLICAS[0]]


def test_a_hot_mask_spreads_over_all_replicas_and_none_has_much_more_than_its_share():
    loads = dict(IDLE)
    for _ in range(300):
        loads[in_order(DIGESTS[0], loads)[0]] += 1
    assert min(loads.values()) > 0 and max(loads.values()) <= 1.25 * 300 / len(REPLICAS) + 1


def test_a_mask_with_little_traffic_stays_on_one_replica_while_others_are_busy():
    home = by_digest(DIGESTS[0], REPLICAS)[0]
    busy = {replica: 0 if replica == home else 40 for replica in REPLICAS}
    assert in_order(DIGESTS[0], busy)[0] == home
    assert in_order(DIGESTS[0], {**IDLE, home: UNSHARED - 1})[0] == home


def test_the_untouched_backbone_goes_where_the_least_is_in_work():
    assert in_order(None, {"a1": 3, "b2": 1, "c3": 2}) == ["b2", "c3", "a1"]
    assert {in_order(None, IDLE)[0] for _ in range(200)} == set(REPLICAS)


def test_a_replica_that_refused_comes_last_and_is_still_there():
    first = in_order(DIGESTS[0], IDLE)[0]
    assert in_order(DIGESTS[0], IDLE, avoid=(first,))[-1] == first
    assert sorted(in_order(DIGESTS[0], IDLE, avoid=REPLICAS)) == sorted(REPLICAS)
