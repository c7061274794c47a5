"""Do promises about spaces hold while a name is pushed over? 64 clients that each name the space they expect.

    .venv/bin/python -m benchmarks.spaces [--quick] [--most-minutes 25] [--out FILE.jsonl]

Half of the clients expect the space of one mask, half that of another; meanwhile one more client uploads both over the
same name in turn, and rolls back, without a pause. Every answer is in the space asked for or 412; an answer whose
digest or vector is the other mask's is mixed, and there must be none. The load generator shares the server's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
from numpy.typing import NDArray

from benchmarks.photos import photo
from benchmarks.rows import row
from benchmarks.server import serving
from service.client import Client, Embeddings

MODEL = "test_vit"
N_CLIENTS, N_REQUESTS, N_QUICK = 64, 20_000, 640
NAME = "pushed"
NPY = "application/x-npy"
WAIT_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--most-minutes", type=float, default=60.0, help="ask no more after them")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    n_requests = N_QUICK if args.quick else N_REQUESTS
    image = photo(64, 64)
    with serving(MODEL, None, "--queue-images", "256", "--timeout-ms", f"{1000 * WAIT_S:.0f}") as server:
        masks = [server.mask(seed, density=0.5) for seed in (1, 2)]
        known = []
        with Client(server.url, timeout_s=WAIT_S) as client:
            for mask in masks:
                client.push(NAME, mask)
                known.append(client.embed([image], NAME))
        began = time.perf_counter()
        counts, n_changes = asyncio.run(ask_all(server.url, image, masks, known, n_requests, args.most_minutes))
        seconds = time.perf_counter() - began
    params = {"model": MODEL, "clients": N_CLIENTS, "requests": counts.total(), "changes of the name": n_changes}
    for variant in ("mixed", "in the space asked for", "412", "other"):
        row("spaces", variant, params, "answers", "1", [float(counts[variant])], out=args.out)
    row("spaces", "all", params, "throughput", "requests/s", [counts.total() / seconds], out=args.out)
    if counts["mixed"] or counts["other"]:
        raise SystemExit(f"answers that break the promise: {dict(counts)}")


async def ask_all(
    url: str, image: bytes, masks: list[bytes], known: list[Embeddings], n_requests: int, most_minutes: float
) -> tuple[Counter[str], int]:
    """What came of the requests, and how often the name changed meanwhile."""
    end = time.monotonic() + 60 * most_minutes
    numbers = itertools.takewhile(lambda _: time.monotonic() < end, range(n_requests))
    counts, n_changes = Counter[str](), 0
    limits = httpx2.Limits(max_connections=N_CLIENTS + 1)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=WAIT_S) as http:
        asking = asyncio.gather(
            *(ask(http, image, known[i % 2], known[1 - i % 2], numbers, counts) for i in range(N_CLIENTS))
        )
        for turn in itertools.count():
            if asking.done():
                break
            if turn % 3:
                answer = await http.put(f"/masks/{NAME}", content=masks[turn % 2])
            else:
                answer = await http.put(f"/masks/{NAME}/current", json={"version": 1 + turn % 2})
            answer.raise_for_status()
            n_changes += 1
        await asking
    return counts, n_changes


async def ask(
    http: httpx2.AsyncClient,
    image: bytes,
    wanted: Embeddings,
    other: Embeddings,
    numbers: Iterator[int],
    counts: Counter[str],
) -> None:
    """One client: asks again and again in the space that it expects, and judges each answer."""
    headers = {"Content-Type": "image/jpeg", "Accept": NPY, "X-SMN-Expect-Space": wanted.space}
    for _ in numbers:
        answer = await http.post("/embed", params={"mask": NAME}, content=image, headers=headers)
        if answer.status_code == 412:
            counts["412"] += 1
        elif answer.status_code != 200:
            counts["other"] += 1
        else:
            z = np.load(io.BytesIO(answer.content), allow_pickle=False)
            told = answer.headers["x-smn-space"] == wanted.space and answer.headers["x-smn-digest"] == wanted.digest
            same = apart(z, wanted.embeddings) < 1e-3 < apart(other.embeddings, wanted.embeddings)
            counts["in the space asked for" if told and same else "mixed"] += 1


def apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Relative distance of two vectors."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
