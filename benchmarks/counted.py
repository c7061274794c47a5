"""Is there one wrong answer among a million? Mixed requests, as many as asked for, while their names are uploaded anew.

    .venv/bin/python -m benchmarks.counted [--requests 1000000] [--most-minutes 600] [--servers 2] [--processes 2]

The traffic of `benchmarks.soak` without hostile inputs and with a Redis that stays: each answer is compared with plain
timm's for the digest that it names, and the digest with what its name may mean by then. Every process uploads, rolls
back and deletes versions of names of its own, and reads those of all. It stops at the number or at the time.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from benchmarks.redis_server import RedisServer
from benchmarks.rows import row
from benchmarks.soaking.known import Away, Seen, Stalls
from benchmarks.soaking.servers import servers
from benchmarks.soaking.traffic import Client
from benchmarks.soaking.world import MODEL, World

AT_ONCE = 16
"""Requests in work, of each process."""
TELL_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--most-minutes", type=float, default=600.0)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="that send")
    parser.add_argument("--quick", action="store_true", help="two thousand")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    requests = 2_000 if args.quick else args.requests
    with tempfile.TemporaryDirectory() as text:
        seen, took_s = count(Path(text), requests, 60 * args.most_minutes, args.servers, args.processes)
    n = seen.answers.total()
    params = {"model": MODEL, "requests": n, "servers": args.servers, "compared": seen.compared}
    params["changes"] = sum(many for kind, many in seen.answers.items() if kind.startswith("change "))
    for kind, many in sorted(seen.answers.items()):
        print(f"{many:9,}  {kind}", file=sys.stderr)
    for fault in seen.faults[:20]:
        print(f"fault: {fault}", file=sys.stderr)
    row("counted", "mixed", params, "wrong answers", "1", [seen.wrong], out=args.out)
    row("counted", "mixed", params, "faults", "1", [len(seen.faults)], out=args.out)
    row("counted", "mixed", params, "requests/s", "1/s", [n / took_s], out=args.out)
    sys.exit(1 if seen.wrong or seen.faults else 0)


@dataclass(frozen=True)
class Part:
    """What one process sends: so many requests for so long, and the names that it alone changes."""

    world: World
    urls: Sequence[str]
    own: frozenset[str]
    number: int
    requests: int
    most_s: float


def count(folder: Path, requests: int, most_s: float, n_servers: int, n_processes: int) -> tuple[Seen, float]:
    """What all processes saw, and the seconds that their requests took."""
    world = World(folder)
    # Forked: each has the references, which take longest to work out. Nothing here has threads by then.
    context = multiprocessing.get_context("fork")
    names = [*world.masks, *world.cascades]
    with RedisServer(folder / "redis") as redis, servers(world, redis.url, n_servers, folder) as running:
        urls, share = [server.url for server in running], -(-requests // n_processes)
        parts = [
            Part(world, urls, frozenset(names[number::n_processes]), number, share, most_s)
            for number in range(n_processes)
        ]
        filled, results = context.Barrier(n_processes), context.SimpleQueue()
        began = time.monotonic()
        processes = [context.Process(target=_run, args=(part, filled, results), daemon=True) for part in parts]
        for process in processes:
            process.start()
        found = [results.get() for _ in processes]
        for process in processes:
            process.join()
        took_s = time.monotonic() - began
    return added(found), took_s


def _run(part: Part, filled: Barrier, results: SimpleQueue[Seen]) -> None:
    results.put(asyncio.run(send(part, filled.wait)))


async def send(part: Part, wait_for_others: Callable[[], object]) -> Seen:
    """Fill the own names, wait until the other processes have filled theirs, then send."""
    seen, left = Seen(), iter(range(part.requests))
    stalls = Stalls()
    client = Client(part.world, part.urls, part.own, np.random.default_rng(part.number), Away(), seen, stalls)
    async with client.session:
        await client.fill()
        await asyncio.to_thread(wait_for_others)
        noticing = asyncio.create_task(stalls.notice())
        began = told = time.monotonic()

        async def one_after_another() -> None:
            nonlocal told
            for _ in left:
                await client.one()
                now = time.monotonic()
                if now - began > part.most_s:
                    return
                if now - told > TELL_S:
                    told = now
                    done = f"{seen.answers.total():,} requests, {seen.wrong} wrong, {len(seen.faults)} faults"
                    print(f"process {part.number}: {done} {seen.faults[-1:]}", file=sys.stderr, flush=True)

        await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
        noticing.cancel()
        await client.check()
    seen.latencies_s.clear()
    return seen


def added(found: Sequence[Seen]) -> Seen:
    """All of them as one."""
    total = Seen(sum((seen.answers for seen in found), Counter()))
    for seen in found:
        total.compared += seen.compared
        total.wrong += seen.wrong
        total.stalled += seen.stalled
        total.faults += seen.faults
    return total


if __name__ == "__main__":
    main()
