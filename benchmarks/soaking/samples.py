"""What servers hold, every few seconds: memory, descriptors, threads, processes below; and whether it grows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.server import tree

MIB = 2**20
ROLLUP = {"Rss:": "rss", "Pss:": "pss", "Anonymous:": "anonymous"}


@dataclass
class Sample:
    """One moment of one server. Bytes: `rss`, `pss` and `anonymous` of the server, `workers_*` of all processes below.

    Anonymous memory is what no file stands behind: pages of libraries come and go with what other processes do.
    """

    at_s: float
    server: int
    requests: int
    rss: int
    pss: int
    anonymous: int
    workers_rss: int
    workers_pss: int
    workers_anonymous: int
    descriptors: int
    threads: int
    workers: int


def sample(pid: int, server: int, at_s: float, requests: int) -> Sample:
    """Look at a server and all that descends from it; what ends meanwhile counts as nothing."""
    own, *below = (memory_of(found) for found in tree(pid))
    workers = {name: sum(memory[name] for memory in below) for name in own}
    descriptors = threads = 0
    with contextlib.suppress(OSError):
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    return Sample(
        at_s, server, requests, own["rss"], own["pss"], own["anonymous"],
        workers["rss"], workers["pss"], workers["anonymous"], descriptors, threads, len(below),
    )  # fmt: skip


def memory_of(pid: int) -> dict[str, int]:
    """Bytes by kind; zeros where the process has ended."""
    found = dict.fromkeys(ROLLUP.values(), 0)
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            name, _, rest = line.partition(" ")
            if name in ROLLUP:
                found[ROLLUP[name]] = 1024 * int(rest.split()[0])
    return found


async def keep_sampling(
    pids: Sequence[int], every_s: float, requests: Callable[[], int], file: Path, found: list[Sample]
) -> None:
    """Add a sample of every server to `found`, and a line to the file, until it is cancelled."""
    began = time.monotonic()
    with file.open("w", encoding="utf-8", buffering=1) as lines:
        while True:
            for number, pid in enumerate(pids):
                now = await asyncio.to_thread(sample, pid, number, time.monotonic() - began, requests())
                found.append(now)
                lines.write(f"{json.dumps(asdict(now))}\n")
            await asyncio.sleep(every_s)


def read_samples(file: Path) -> list[Sample]:
    return [Sample(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def growth(samples: Sequence[Sample], server: int) -> dict[str, float]:
    """The last quarter of the time against the second one: a ratio for memory, a difference for what is counted."""
    mine = [s for s in samples if s.server == server]
    quarter = max(1, len(mine) // 4)

    def median(part: Sequence[Sample], *names: str) -> float:
        return float(np.median([sum(getattr(s, name) for name in names) for s in part]))

    early, late = mine[quarter : 2 * quarter] or mine, mine[-quarter:]
    both = ("anonymous", "workers_anonymous")
    return {
        "memory": median(late, *both) / max(1.0, median(early, *both)),
        "descriptors": median(late, "descriptors") - median(early, "descriptors"),
        "threads": median(late, "threads") - median(early, "threads"),
        "workers": median(late, "workers") - median(early, "workers"),
    }
