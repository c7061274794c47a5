"""The soak in its short form: servers hold, and what it would have to find it finds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.counted import Part, added, send
from benchmarks.redis_server import RedisServer
from benchmarks.soak import Plan, watched
from benchmarks.soaking import known
from benchmarks.soaking.hostile import KINDS
from benchmarks.soaking.known import Away, Change, Name, Seen, Stalls
from benchmarks.soaking.samples import Sample, growth
from benchmarks.soaking.servers import servers
from benchmarks.soaking.traffic import Client
from benchmarks.soaking.world import World


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """World, Redis, one server, and its folder."""
    folder = tmp_path_factory.mktemp("soak")
    world = World(folder, names=3, cascades=1)
    with RedisServer(folder / "redis") as redis, servers(world, redis.url, 1, folder) as running:
        yield world, redis, running, folder


def test_a_few_seconds_with_a_killed_redis_have_no_fault(served):
    """Without the inputs that wait for the end of a deadline."""
    kinds = tuple(kind for kind in KINDS if kind != "half a request")
    plan = Plan(last_s=6, every_kill_s=3, away_s=1, servers=1, rate=25, every_s=0.5, kinds=kinds)
    done = asyncio.run(watched(plan, *served))
    assert done.seen.faults == [] and done.seen.wrong == 0
    assert done.seen.compared > 20 and len(done.away) >= 1
    assert sum(n for kind, n in done.seen.answers.items() if kind.startswith("hostile")) > 3
    assert all(sample.rss > 0 and sample.threads > 1 and sample.workers > 1 for sample in done.samples)


def test_a_share_of_the_million_is_sent_and_every_answer_compared(served):
    world, _, running, _ = served
    part = Part(world, [running[0].url], frozenset([*world.masks, *world.cascades]), 0, requests=40, most_s=60)
    seen = added([asyncio.run(send(part, lambda: None)) for _ in range(2)])
    assert seen.faults == [] and seen.wrong == 0 and seen.compared > 20
    assert seen.answers.total() > 2 * 40, "requests, uploads before them and questions after them"


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """The same world, but every file has the reference of another one of its name."""
    exchanged = World(tmp_path_factory.mktemp("exchanged"), names=3, cascades=1)
    for files in (*exchanged.masks.values(), *exchanged.cascades.values()):
        others = [*files[1:], files[0]]
        files[:] = [
            replace(file, z=other.z, probabilities=other.probabilities)
            for file, other in zip(files, others, strict=True)
        ]
    return exchanged


@pytest.mark.parametrize("kind", ["embed npy", "embed several", "classify", "v1/embeddings", "cascade"])
def test_an_answer_of_another_mask_is_found(served, exchanged, kind):
    async def ask():
        seen = Seen()
        own = {*exchanged.masks, *exchanged.cascades}
        client = Client(exchanged, [served[2][0].url], own, np.random.default_rng(0), Away(), seen, Stalls())
        async with client.session:
            await client.fill()
            await client.kinds[kind][1]()
        return seen

    seen = asyncio.run(ask())
    assert seen.wrong == seen.compared == 1


def test_a_name_may_mean_what_was_acknowledged_last_and_what_is_on_its_way():
    name = Name()
    name.changes += [Change("a", 0, 1.0, 2.0), Change("b", 0, 5.0, 6.0), Change("c", 1, 7.0, 8.0), Change("d", 0, 20.0)]
    assert name.allowed(0, 3.0, 4.0, lag_s=1.0) == {"a"}
    assert name.allowed(0, 5.5, 6.5, lag_s=1.0) == {"a", "b"}
    assert name.allowed(0, 8.5, 8.6, lag_s=1.0) == {"b", "c"}, "the other server may not have heard of it"
    assert name.allowed(0, 9.5, 9.6, lag_s=1.0) == {"c"}
    assert name.allowed(0, 25.0, 26.0, lag_s=1.0) == {"c", "d"}, "without an answer it may come true later"


def test_an_unanswered_request_is_a_fault_unless_the_machine_stood_still(monkeypatch):
    now = 100.0
    monkeypatch.setattr(known, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(known, "TICK_S", 0.01)
    stalls = Stalls()

    async def stand_still():
        nonlocal now
        noticing = asyncio.create_task(stalls.notice())
        await asyncio.sleep(0)
        assert not stalls.covers(99, 100)
        now = 120.0
        assert stalls.covers(99, 120), "before the tick has noticed it"
        while not stalls.spans:
            await asyncio.sleep(0.01)
        noticing.cancel()

    asyncio.run(stand_still())
    assert stalls.spans == [(100.0, 120.0)]
    assert stalls.covers(119, 121) and not stalls.covers(121, 122)


def test_growth_is_the_last_quarter_against_the_second():
    flat = Sample(0, 0, 0, 1, 1, 100, 1, 1, 0, 10, 5, 2)
    samples = [replace(flat, at_s=i, anonymous=100 + 10 * i, descriptors=10 + i) for i in range(40)]
    found = growth([*samples, replace(flat, server=1)], 0)
    assert found["memory"] == pytest.approx(445 / 245) and found["descriptors"] == 20 and found["threads"] == 0
