"""Does an hour of mixed and hostile traffic, with a Redis that is killed, leave servers right and as they were?

    .venv/bin/python -m benchmarks.soak --minutes 60 --every-kill-minutes 10 [--servers 2] [--rate 30] [--folder DIR]

A client embeds, classifies, uses cascades and OpenAI's dialect, lists, inspects, uploads again, rolls back and deletes
old versions on a tiny backbone; each kind of hostile input is one request of a hundred. Every answer is compared with
plain timm's for the digest that it names, and that digest with what the name may mean by then. Redis is killed
(SIGKILL) and started again after `--away-s`. A fault is a wrong answer, no answer, or a status that a request may not
get: 503 and 504 while Redis is away, no other 5xx. Where the machine stood still for ten seconds, so that this process
did not run either, unanswered requests are counted apart. The last line is the verdict; exit code 1: it does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.redis_server import RedisServer
from benchmarks.rows import row
from benchmarks.server import Process
from benchmarks.soaking.hostile import KINDS, Hostile
from benchmarks.soaking.known import Away, Seen, Stalls
from benchmarks.soaking.samples import Sample, growth, keep_sampling
from benchmarks.soaking.servers import servers
from benchmarks.soaking.traffic import Client
from benchmarks.soaking.world import MODEL, World

HOSTILE_SHARE = 0.01
"""Of the requests, for each kind of hostile input."""
IN_WORK = 12
"""Requests at once, at most: a machine that is kept busy by others gets fewer requests, not longer queues."""
TELL_S = 60.0
FLAT = {"memory": 1.05, "descriptors": 16.0, "threads": 4.0, "workers": 2.0}
"""The most that the last quarter may have over the second one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every-kill-minutes", type=float, default=10.0, help="0: Redis is never killed")
    parser.add_argument("--away-s", type=float, default=5.0, help="how long Redis stays away")
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=30.0, help="requests a second")
    parser.add_argument("--every-s", type=float, default=5.0, help="between two samples")
    parser.add_argument("--quick", action="store_true", help="twenty seconds, one killed Redis")
    parser.add_argument("--folder", type=Path, help="keep samples and logs there")
    parser.add_argument("--picture", type=Path, help="draw the samples into this file")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.every_kill_minutes, args.away_s, args.every_s = 0.33, 0.16, 2.0, 0.5
    plan = Plan(60 * args.minutes, 60 * args.every_kill_minutes, args.away_s, args.servers, args.rate, args.every_s)
    with tempfile.TemporaryDirectory() as text:
        folder = args.folder or Path(text)
        folder.mkdir(parents=True, exist_ok=True)
        done = soak(plan, folder)
        if args.picture:
            from benchmarks.soaking.picture import draw

            draw(done.samples, done.away, args.picture)
    held = tell(plan, done, args.out)
    sys.exit(0 if held else 1)


@dataclass(frozen=True)
class Plan:
    """How long, how often Redis is killed and for how long it is away, how many servers, how many requests a second."""

    last_s: float
    every_kill_s: float
    away_s: float
    servers: int
    rate: float
    every_s: float
    kinds: tuple[str, ...] = KINDS
    """Of hostile inputs."""


@dataclass
class Done:
    """What was seen: answers and faults, samples, spans without Redis in the samples' seconds, and how long it took."""

    seen: Seen
    samples: list[Sample]
    away: list[list[float]]
    took_s: float
    growths: list[dict[str, float]] = field(default_factory=list)


def soak(plan: Plan, folder: Path) -> Done:
    """Start a Redis and the servers, send for as long as the plan says, end them."""
    world = World(folder)
    with RedisServer(folder / "redis") as redis, servers(world, redis.url, plan.servers, folder) as running:
        return asyncio.run(watched(plan, world, redis, running, folder))


async def watched(plan: Plan, world: World, redis: RedisServer, running: Sequence[Process], folder: Path) -> Done:
    """Send what the plan says to servers that run, on a Redis that runs; samples go to a file in the folder."""
    seen, away, samples = Seen(), Away(), list[Sample]()
    urls = [server.url for server in running]
    rng = np.random.default_rng(0)
    stalls = Stalls()
    client = Client(world, urls, {*world.masks, *world.cascades}, rng, away, seen, stalls)
    hostile = Hostile(client)
    async with client.session:
        await client.fill()
        began = time.monotonic()
        beside = [
            asyncio.create_task(
                keep_sampling(
                    [server.pid for server in running],
                    plan.every_s,
                    seen.answers.total,
                    folder / "samples.jsonl",
                    samples,
                )
            ),
            asyncio.create_task(_tell_now_and_then(seen, began)),
        ]
        if plan.every_kill_s:
            beside.append(asyncio.create_task(_kill_now_and_then(redis, plan, away, urls)))
        try:
            await _send(client, hostile, plan)
        finally:
            for task in beside:
                task.cancel()
            ended = await asyncio.gather(*beside, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        took_s = time.monotonic() - began
        await _settle(redis, away, urls)
        await client.check()
    spans = [[start - began, min(end, began + took_s) - began] for start, end in away.spans]
    (folder / "away.json").write_text(json.dumps(spans), encoding="utf-8")
    return Done(seen, samples, spans, took_s, [growth(samples, number) for number in range(len(running))])


async def _send(client: Client, hostile: Hostile, plan: Plan) -> None:
    """Requests at random times, so many a second, until the time is over; then wait for those in work."""
    room, tasks = asyncio.Semaphore(IN_WORK), set[asyncio.Task[None]]()
    due = began = time.monotonic()

    async def one() -> None:
        try:
            which = int(client.rng.random() / HOSTILE_SHARE)
            await (hostile.one(plan.kinds[which]) if which < len(plan.kinds) else client.one())
        finally:
            room.release()

    while due < began + plan.last_s:
        due += client.rng.exponential(1 / plan.rate)
        await asyncio.sleep(due - time.monotonic())
        await room.acquire()
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def _kill_now_and_then(redis: RedisServer, plan: Plan, away: Away, urls: Sequence[str]) -> None:
    while True:
        await asyncio.sleep(plan.every_kill_s)
        away.begin()
        await asyncio.to_thread(redis.stop, signal.SIGKILL)
        try:
            await asyncio.sleep(plan.away_s)
        finally:
            await asyncio.to_thread(redis.start)
        await _ready(urls)
        away.end()


async def _settle(redis: RedisServer, away: Away, urls: Sequence[str]) -> None:
    """Redis and all servers are there at the end, even where the time was over while they were not."""
    if redis.process is None:
        await asyncio.to_thread(redis.start)
    await _ready(urls)
    if away.spans and away.spans[-1][1] == float("inf"):
        away.end()


async def _ready(urls: Sequence[str]) -> None:
    async with aiohttp.ClientSession() as session:
        for url in urls:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/readyz") as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(0.1)


async def _tell_now_and_then(seen: Seen, began: float) -> None:
    while True:
        await asyncio.sleep(TELL_S)
        minutes = (time.monotonic() - began) / 60
        print(
            f"{minutes:5.1f} min: {seen.answers.total():,} requests, {seen.compared:,} compared, {seen.wrong} wrong, "
            f"{seen.away} without Redis, {len(seen.faults)} faults {seen.faults[-1:]}",
            file=sys.stderr,
            flush=True,
        )


def tell(plan: Plan, done: Done, out: Path | None) -> bool:
    """Print what was seen, the rows and the verdict; whether it holds."""
    seen = done.seen
    for kind, n in sorted(seen.answers.items()):
        print(f"{n:9,}  {kind}", file=sys.stderr)
    for fault in seen.faults[:50]:
        print(f"fault: {fault}", file=sys.stderr)
    params = {
        "model": MODEL, "minutes": round(done.took_s / 60, 2), "servers": plan.servers, "requests a second": plan.rate,
        "redis killed": len(done.away), "requests": seen.answers.total(), "compared": seen.compared,
    }  # fmt: skip
    row("soak", "servers", params, "wrong answers", "1", [seen.wrong], out=out)
    row("soak", "servers", params, "faults", "1", [len(seen.faults)], out=out)
    row("soak", "servers", params, "503 and 504 while Redis was away", "1", [seen.away], out=out)
    row("soak", "servers", params, "no answer, 503 or 504 while the machine stood still", "1", [seen.stalled], out=out)
    for metric, unit in (("memory", "x"), ("descriptors", "1"), ("threads", "1"), ("workers", "1")):
        name = f"{metric}, last quarter against the second"
        row("soak", "servers", params, name, unit, [found[metric] for found in done.growths], out=out)
    row("soak", "servers", params, "latency", "ms", [1e3 * s for s in seen.latencies_s], out=out)
    grew = [f"{m} {found[m]:.3g}" for found in done.growths for m, most in FLAT.items() if found[m] > most]
    held = not (seen.wrong or seen.faults or grew)
    told = (
        f"{seen.answers.total():,} requests, {seen.compared:,} compared, {seen.wrong} wrong, {len(seen.faults)} faults"
    )
    print(
        f"verdict: {'holds' if held else 'does not hold'}: {told}; grew: {', '.join(grew) or 'nothing'}",
        file=sys.stderr,
    )
    return held


if __name__ == "__main__":
    main()
