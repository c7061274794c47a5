"""The model of a fleet does what its words say, where that can be worked out by hand."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from benchmarks.fleet import DEVICE, HOST, JOINED, REDIS, Figures, Fleet, Room

FIGURES = Figures(
    image_s=0.01, mixed_image_s=0.02, swap_s=0.0, fetch_latency_s=0.1, prepare_s=0.3, file_bytes=100,
    device_bytes=10, slot_bytes=0, redis_bytes_s=1000.0, batch=4,
)  # fmt: skip
EVEN = np.full(8, 1 / 8)


def fleet(room: Room, n: int = 1, *, affinity: bool = True) -> Fleet:
    return Fleet(FIGURES, room, n, EVEN, affinity=affinity)


def test_a_warm_replica_answers_as_fast_as_its_engine():
    """One mask: an image each hundredth of a second, however many clients wait."""
    for clients in (1, 4):
        one = fleet(Room(device=8))
        one.warm()
        one.closed_loop(iter([3] * 100), clients)
        one.env.run()
        assert one.env.now == pytest.approx(1.0)
        assert one.seen.tiers == {DEVICE: 100}


def test_a_batch_of_several_masks_costs_what_mixing_costs():
    one = fleet(Room(device=8))
    one.warm()
    one.open_loop([0, 0, 1, 2, 3], [0.0] * 5)
    one.env.run()
    # The engine is free for the first, which leaves alone; the other four are one batch.
    assert one.env.now == pytest.approx(0.01 + 4 * 0.02)


def test_a_cold_mask_is_fetched_once_for_all_who_wait():
    """A fetch of .1 s and .1 s on the link, .3 s to prepare; then both images in batches."""
    one = fleet(Room(device=8))
    one.open_loop([5, 5, 5], [0.0, 0.2, 0.1])
    one.env.run()
    assert one.seen.tiers == {REDIS: 1, JOINED: 2}
    assert one.seen.loads_s == [0.0]
    assert one.env.now == pytest.approx(0.5 + 3 * 0.01)


def test_the_least_recently_used_mask_is_forgotten_and_comes_back_from_the_host():
    """Loads and hits are those of two plain lists."""
    order = np.random.default_rng(0).integers(0, 8, 300).tolist()
    one = fleet(Room(device=3, host=5))
    one.closed_loop(iter(order), 1)
    one.env.run()
    device, host = OrderedDict(), OrderedDict()
    expected = {DEVICE: 0, HOST: 0, REDIS: 0}
    for mask in order:
        tier = DEVICE if mask in device else HOST if mask in host else REDIS
        expected[tier] += 1
        for kept, room in ((device, 3), *(((host, 5),) if tier != DEVICE else ())):
            kept[mask] = None
            kept.move_to_end(mask)
            while len(kept) > room:
                kept.popitem(last=False)
    assert one.seen.tiers == expected
    assert len(one.seen.loads_s) == expected[REDIS]


@pytest.mark.parametrize("affinity", [True, False])
def test_a_lost_replica_loses_no_request(affinity):
    some = fleet(Room(device=2), 3, affinity=affinity)
    order = np.random.default_rng(0).integers(0, 8, 200).tolist()
    some.open_loop(order, [0.01] * 200)
    some.env.run(until=1.0)
    some.lose_one()
    some.env.run()
    assert some.seen.moved > 0
    assert len(some.seen.latency_s) == 200


def test_a_change_makes_every_copy_stale():
    some = fleet(Room(device=8, host=8), 2, affinity=False)
    some.warm()
    some.change(3)
    assert some.seen.stale == 4
    some.open_loop([3], [0.0])
    some.env.run()
    assert some.seen.tiers == {REDIS: 1}


def holders(gap_s: float) -> list[int]:
    """How many of four replicas hold each mask after traffic of which the first is nine tenths."""
    popularity = np.array([0.9, *[0.1 / 99] * 99])
    some = Fleet(FIGURES, Room(device=100), 4, popularity, affinity=True)
    some.open_loop(np.random.default_rng(0).choice(100, 400, p=popularity).tolist(), [gap_s] * 400)
    some.env.run()
    return [sum(mask in replica.device for replica in some.replicas) for mask in range(100)]


def test_affinity_keeps_a_mask_on_one_replica_while_that_is_enough_and_spreads_it_when_not():
    assert max(holders(gap_s=1.0)) == 1
    assert holders(gap_s=0.002)[0] >= 3
