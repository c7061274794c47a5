"""How soon does a server see what another one took? Uploads at one of two on one Redis, questions at the other.

    .venv/bin/python -m benchmarks.seen [--changes 10000] [--quick] [--out FILE.jsonl]

A delay runs from the acknowledgement of a change at one server to the end of the first answer of the other one that
knows it; the other is asked without a pause. Each answer after 100 ms is explained: when Redis gave the change out (a
third reader of its stream), how many answers came meanwhile, how long each thread and process of both servers, of Redis
and of this client ran, and how long it was ready and had no processor.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import redis as redis_py

from benchmarks.redis_server import RedisServer
from benchmarks.rows import row
from benchmarks.soaking.servers import servers
from benchmarks.soaking.traffic import ADMIN, READER
from benchmarks.soaking.world import MODEL, World

LATE_S = 0.1
GIVEN_UP_S = 600.0
ANSWER_S = 600.0
"""Long, so that a machine that stalls gives a late answer with its explanation, not an error."""
CHANGES_A_NAME = 50
SHOWN = 3
"""Threads of an explanation: those that waited longest for a processor."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=10_000)
    parser.add_argument("--most-minutes", type=float, default=600.0)
    parser.add_argument("--quick", action="store_true", help="two hundred")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        delays_ms, late = measure(Path(text), 200 if args.quick else args.changes, 60 * args.most_minutes)
    params = {"model": MODEL, "servers": 2, "changes": len(delays_ms)}
    row("seen", "by the other server", params, "delay", "ms", delays_ms, out=args.out)
    for q in (99.0, 99.9):
        row("seen", "by the other server", params, f"delay p{q:g}", "ms", [np.percentile(delays_ms, q)], out=args.out)
    row("seen", "by the other server", params, "slowest delay", "ms", [max(delays_ms)], out=args.out)
    row("seen", "by the other server", params, "answers later than 100 ms", "1", [len(late)], out=args.out)
    for told in late:
        print(f"late: {told}", file=sys.stderr)


def measure(folder: Path, changes: int, most_s: float) -> tuple[list[float], list[str]]:
    """Milliseconds of every change, and of each late one what happened meanwhile."""
    world = World(folder, names=1, cascades=0)
    (files,) = world.masks.values()
    delays_ms, late = [], []
    with RedisServer(folder / "redis") as redis, servers(world, redis.url, 2, folder) as running:
        assert redis.process is not None
        pids = {
            "server 1": running[0].pid,
            "server 2": running[1].pid,
            "redis": redis.process.pid,
            "client": os.getpid(),
        }
        given = Given(redis.url)
        asks = [Asker(server.url) for server in running]
        began = time.monotonic()
        for number in range(changes):
            if time.monotonic() - began > most_s:
                break
            writer, reader = (asks[number % 2], asks[1 - number % 2])
            file, name = files[number % len(files)], f"mask-{number // CHANGES_A_NAME}"
            sent = time.monotonic()
            if not writer.put(name, file.data):
                continue
            before, acknowledged = waits_of(pids), time.monotonic()
            answers = 0
            while reader.digest(name) != file.digest:
                answers += 1
                if time.monotonic() - acknowledged > GIVEN_UP_S:
                    raise RuntimeError(f"change {number} was not seen in {GIVEN_UP_S:.0f} s")
            delay_s = time.monotonic() - acknowledged
            delays_ms.append(1e3 * delay_s)
            if delay_s > LATE_S:
                after = waits_of(pids)
                out = 1e3 * (given.first_since(sent) - acknowledged)
                told = f"change {number}: {1e3 * delay_s:.0f} ms; Redis had given it out {out:+.0f} ms after the answer"
                late.append(f"{told}; {answers} answers before; {explained(before, after)}")
    return delays_ms, late


class Asker:
    """A kept connection to one server."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=ANSWER_S)

    def put(self, name: str, data: bytes) -> bool:
        """Whether it was acknowledged; not where a deadline passed, as on a machine that stood still."""
        answer = self._ask("PUT", f"/masks/{name}", ADMIN, data)
        if answer.status not in (200, 201, 503, 504):
            raise RuntimeError(f"upload: {answer.status}")
        return answer.status in (200, 201)

    def digest(self, name: str) -> str:
        """What the name means there now; empty where it is not known."""
        answer = self._ask("HEAD", f"/masks/{name}/file", READER)
        return (answer.headers.get("ETag") or "").strip('"')

    def _ask(self, method: str, path: str, key: str, body: bytes | None = None) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, {"Authorization": f"Bearer {key}"})
        answer = self._connection.getresponse()
        answer.read()
        return answer


class Given:
    """When each change left Redis: a reader of its stream of its own, which waits as servers do."""

    def __init__(self, url: str) -> None:
        self._times: list[float] = []
        self._client = redis_py.Redis.from_url(url)
        threading.Thread(target=self._follow, daemon=True).start()

    def first_since(self, sent: float) -> float:
        """Seconds of the monotonic clock; not a number where nothing has come since."""
        return next((at for at in self._times[-CHANGES_A_NAME:] if at >= sent), float("nan"))

    def _follow(self) -> None:
        key, position = None, b"0-0"
        with contextlib.suppress(redis_py.RedisError):
            while True:
                key = key or next(iter(self._client.keys("*:changes")), None)
                if key is None:
                    time.sleep(0.01)
                    continue
                found: Any = self._client.xread({key: position}, block=1000)
                for _, changes in found or []:
                    now = time.monotonic()
                    self._times += [now] * len(changes)
                    position = changes[-1][0]


def waits_of(pids: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Of each thread of these processes: nanoseconds on a processor, and ready without one."""
    found = {}
    for name, pid in pids.items():
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                ran, waited, _ = (task / "schedstat").read_text(encoding="utf-8").split()
                thread = (task / "comm").read_text(encoding="utf-8").strip()
                found[f"{name} {thread} {task.name}"] = int(ran), int(waited)
    return found


def explained(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> str:
    """The threads that waited longest for a processor, with how long they waited and ran."""
    moved = {
        name: (after[name][1] - waited, after[name][0] - ran) for name, (ran, waited) in before.items() if name in after
    }
    most = sorted(moved, key=lambda name: -sum(moved[name]))[:SHOWN]
    return json.dumps({name: f"waited {moved[name][0] / 1e6:.0f} ms, ran {moved[name][1] / 1e6:.0f}" for name in most})


if __name__ == "__main__":
    main()
