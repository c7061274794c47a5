"""The simulation of fleet.py against a real `smn serve`, over HTTP, on one machine: loads and images a second.

One server whose host memory holds a third of the masks, clients that wait for their answers, Zipf traffic. The model
gets what is measured first on the same server: an image's time on one mask, on a few masks that are all there, and the
time of a load. It then predicts a run over all masks; the order of masks is the same for both.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.fleet import Figures, Fleet, Room
from benchmarks.http import CLIENTS, SLOTS, metric_of
from benchmarks.masks import measure_mask
from benchmarks.redis_server import RedisServer
from benchmarks.rows import row
from benchmarks.server import Running, pixels, serving
from benchmarks.traffic import popularity_of
from service.client import AsyncClient, Client
from smn_core.backbone import layout_for, model_json
from smn_core.verbs.stderr import note

MODEL = "test_vit"
CACHE_BYTES = 2**20
"""The least that a server takes."""
EXPONENT = 1.0
LOADS_TOLERANCE = 0.03
RATE_TOLERANCE = 0.3
COLD = 30
"""Masks that are loaded to measure a load."""


def check(quick: bool, out: Path | None) -> bool:
    """Rows of both, and whether they agree: loads a request within .03, images a second within 30 %."""
    n = 500 if quick else 3000
    _, file_bytes, resident_bytes, _ = measure_mask(MODEL, 0.99, turns=1)
    # A flag for each tensor comes on top of the resident form.
    kept_bytes = resident_bytes + len(layout_for(model_json(MODEL, {})).tensors)
    kept = CACHE_BYTES // kept_bytes
    masks = 3 * kept
    warm, order = zipf(masks, n, seed=4), zipf(masks, n, seed=2)
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder)) as redis,
        serving(MODEL, redis.url, "--cache-bytes", str(CACHE_BYTES), slots=SLOTS) as server,
    ):
        with Client(server.url) as client:
            for index in range(masks):
                client.push(f"mask-{index}", server.mask(index))
        figures = calibrate(server, n // 2, file_bytes, kept_bytes)
        closed_loop(server, warm)
        before = metric_of(server, "smn_load_seconds_count")
        rate = closed_loop(server, order)
        loads = metric_of(server, "smn_load_seconds_count") - before
    room = Room(kept, cores=len(os.sched_getaffinity(0)))
    fleet = Fleet(figures, room, 1, np.full(masks, 1 / masks), affinity=True)
    fleet.closed_loop(iter(warm), CLIENTS)
    fleet.env.run()
    warm_s, warm_loads = fleet.env.now, len(fleet.seen.loads_s)
    fleet.closed_loop(iter(order), CLIENTS)
    fleet.env.run()
    predicted_loads, predicted_rate = len(fleet.seen.loads_s) - warm_loads, n / (fleet.env.now - warm_s)
    params = {"model": MODEL, "masks": masks, "kept": kept, "law": f"zipf:{EXPONENT:g}", "requests": n}
    params |= {"clients": CLIENTS}
    for variant, a, b in (("server", loads, rate), ("model", predicted_loads, predicted_rate)):
        row("scale-check", variant, params, "loads a request", "1", [a / n], out=out)
        row("scale-check", variant, params, "throughput", "images/s", [b], out=out)
    agree = abs(loads - predicted_loads) / n <= LOADS_TOLERANCE and abs(predicted_rate / rate - 1) <= RATE_TOLERANCE
    note(
        f"{masks} masks, {kept} kept: loads a request {loads / n:.3f} real, {predicted_loads / n:.3f} model; "
        f"images/s {rate:.1f} real, {predicted_rate:.1f} model: {'they agree' if agree else 'THEY DISAGREE'}"
    )
    return agree


def calibrate(server: Running, n: int, file_bytes: int, device_bytes: int) -> Figures:
    """What the model is told: measured on this server, and nothing of the run that it predicts."""
    with Client(server.url) as client:
        x = pixels(server.backbone, 1)
        before = [metric_of(server, f"smn_load_seconds_{part}") for part in ("sum", "count")]
        for index in range(COLD):  # the last are there afterwards
            client.embed(x, f"mask-{index}")
        after = [metric_of(server, f"smn_load_seconds_{part}") for part in ("sum", "count")]
    load_s = (after[0] - before[0]) / (after[1] - before[1])
    there = range(COLD - 10, COLD)
    one = closed_loop(server, [there[0]] * n)
    mixed = closed_loop(server, np.random.default_rng(3).choice(there, n).tolist())
    # Of a load, the fetch from a Redis beside the server is a small part: all of it is work on a core here.
    return Figures(1 / one, 1 / mixed, 0.0, 0.0, load_s, file_bytes, device_bytes, 0, 1e12)


def zipf(masks: int, n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).choice(masks, n, p=popularity_of(masks, EXPONENT)).tolist()


def closed_loop(server: Running, order: Sequence[int]) -> float:
    """Images a second of clients that wait for their answers."""
    x, todo = pixels(server.backbone, 1), iter(order)

    async def drive() -> float:
        async with AsyncClient(server.url) as client:

            async def ask() -> None:
                for index in todo:
                    await client.embed(x, f"mask-{index}")

            began = time.perf_counter()
            await asyncio.gather(*(ask() for _ in range(CLIENTS)))
            return len(order) / (time.perf_counter() - began)

    return asyncio.run(drive())
