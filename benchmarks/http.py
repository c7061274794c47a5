"""What HTTP costs: a real `smn serve` against the engine in this process, and under load by the five popularity laws.

    .venv/bin/python -m benchmarks.http [--quick] [--only processor,overhead,cold,load] [--out FILE.jsonl]

processor   user and system time of the server's process per image, against the engine's on the same tensors, in turn.
            The load generator shares the cores, so wall time would mislead. Target: at most 1.1x.
overhead    one client, one image a request: `Server-Timing`'s total less decode and forward; and what the client waits
            beyond them. Target: at most 3 ms p50. On a machine that others use, the server's threads wait for a
            processor within this time; how long, the kernel tells.
cold        masks in Redis that the server has never seen: the first answer by stages, and what `load` is made of.
load        closed loop (clients that wait for their answers) and open loop (arrivals of a Poisson process at .6 of the
            closed loop's rate on one mask, latency from the planned arrival on), for every law.

The laws, for n requests (Punica's bench): identical, one mask; distinct, n masks; uniform, sqrt(n) masks alike;
zipf:1.5, p(i) ~ i ** -1.5 over sqrt(n) masks; skewed, each mask asked 1.5 times as often as the next.
Weights and images are random; masks have density .99.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.photos import photo
from benchmarks.redis_server import RedisServer
from benchmarks.rows import row
from benchmarks.server import Running, backbone_again, pixels, serving
from benchmarks.traffic import LAWS, tasks_of
from service.client import AsyncClient, Client
from service.registry.open import open_registry
from smn_core.engine import Engine, Segment
from smn_core.maskfile import parse_mask
from smn_core.tensorfile import digest_of

VIT, RESNET = "vit_tiny_patch16_224", "resnet50"
SLOTS = 16
CLIENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few turns of each")
    parser.add_argument("--only", default="processor,overhead,cold,load", help="which of the four")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[Running, bool, Path | None], None]] = {
        "processor": processor, "overhead": overhead, "cold": cold, "load": load,
    }  # fmt: skip
    for name in (VIT, RESNET):
        wanted = [part for part in args.only.split(",") if name == VIT or part == "cold"]
        if not wanted:
            continue
        with (
            tempfile.TemporaryDirectory() as folder,
            RedisServer(Path(folder)) as redis,
            serving(name, redis.url, slots=SLOTS) as server,
        ):
            for part in wanted:
                parts[part](server, args.quick, args.out)


def processor(server: Running, quick: bool, out: Path | None) -> None:
    """Processor time per image, server against engine, in turn."""
    engine, data = Engine(backbone_again(server), SLOTS, threads=1), server.mask(0)
    engine.prepare(parse_mask(data, server.backbone.layout))
    digest = digest_of(data)
    with Client(server.url) as client:
        client.push("processor", data)
        for n_images in (1, 8):
            x = pixels(server.backbone, n_images)
            rounds = 32 // n_images
            taken: dict[str, list[float]] = {"engine": [], "server": []}
            for turn in range(1 + (4 if quick else 15)):
                in_process, before = 0.0, server.cpu_s()
                for _ in range(rounds):  # request by request, so that both find the caches as the other left them
                    began = time.process_time()
                    engine.embed(torch.from_numpy(x), [Segment(digest, 0, n_images)])
                    in_process += time.process_time() - began
                    client.embed(x, "processor")
                if turn:  # the first warms up
                    taken["engine"].append(1e3 * in_process / (rounds * n_images))
                    taken["server"].append(1e3 * (server.cpu_s() - before) / (rounds * n_images))
            params = {"model": server.backbone.architecture, "images a request": n_images, "form": "npy"}
            for variant, values in taken.items():
                row("http", variant, params, "processor time per image", "ms", values, out=out)
            ratios = [a / b for a, b in zip(taken["server"], taken["engine"], strict=True)]
            row("http", "server", params, "processor time ratio to engine", "x", ratios, out=out)


def overhead(server: Running, quick: bool, out: Path | None) -> None:
    """What one client waits for beyond decode and forward."""
    forms: dict[str, Any] = {"npy": pixels(server.backbone, 1), "jpeg": [photo()]}
    with Client(server.url) as client:
        client.push("overhead", server.mask(0))
        found: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
        for turn in range(5 + (40 if quick else 200)):
            for form, images in forms.items():
                before, began = server.waits_ns(), time.perf_counter()
                answer = client.embed(images, "overhead")
                waited = 1e3 * (time.perf_counter() - began)
                after = server.waits_ns()
                # The engine's thread is the one that ran longest; its waits are forward's.
                threads = before.keys() & after.keys()  # one that is idle may end in between
                engine = max(threads, key=lambda thread: after[thread][0] - before[thread][0])
                ready = sum(after[thread][1] - before[thread][1] for thread in threads if thread != engine)
                if turn >= 5:
                    found[form].append(stages(answer.server_timing) | {"client": waited, "no processor": 1e-6 * ready})
    for form, answers in found.items():
        params = {"model": server.backbone.architecture, "form": form, "clients": 1}
        for stage in ("load", "queue", "decode", "swap", "forward", "total", "client"):
            row("http", "server", params, stage, "ms", [a[stage] for a in answers], out=out)
        for whole, metric in (("total", "beyond decode and forward"), ("client", "client's wait beyond them")):
            beyond = [a[whole] - a["decode"] - a["forward"] for a in answers]
            row("http", "server", params, metric, "ms", beyond, out=out)
        starved = [a["no processor"] for a in answers]
        row("http", "server", params, "ready without a processor, all threads but the engine's", "ms", starved, out=out)


def cold(server: Running, quick: bool, out: Path | None) -> None:
    """The first answer through masks that are in Redis alone, and what loading one takes here."""
    engine = Engine(backbone_again(server), SLOTS, threads=1)
    registry = open_registry(server.registry, server.backbone.fingerprint)
    answers, parts = [], []
    with Client(server.url) as client:
        for seed in range(6 if quick else 20):
            name, data, x = f"cold-{seed}", server.mask(seed), pixels(server.backbone, 1)
            registry.publish("masks", name, data)
            client.embed(x)  # all but the mask is warm
            while name not in {found["name"] for found in client.masks()}:
                time.sleep(0.001)
            began = time.perf_counter()
            answer = client.embed(x, name)
            answers.append(stages(answer.server_timing) | {"client": 1e3 * (time.perf_counter() - began)})
            marks = [time.perf_counter()]
            blob = registry.blob(digest_of(data))
            marks.append(time.perf_counter())
            mask = parse_mask(blob, server.backbone.layout)
            marks.append(time.perf_counter())
            engine.prepare(mask)
            marks.append(time.perf_counter())
            parts.append([1e3 * (b - a) for a, b in pairwise(marks)])
    registry.close()
    params = {"model": server.backbone.architecture, "bytes": len(data), "density": 0.99}
    for stage in ("load", "queue", "decode", "swap", "forward", "total", "client"):
        row("http", "cold mask from Redis", params, stage, "ms", [a[stage] for a in answers], out=out)
    for index, stage in enumerate(("fetch", "check", "prepare")):
        row("http", "load, in this process", params, stage, "ms", [part[index] for part in parts], out=out)


def load(server: Running, quick: bool, out: Path | None) -> None:
    """Closed and open loop for every law, in turn."""
    n = 48 if quick else 400
    with Client(server.url) as client:
        for index in range(n):
            client.push(f"load-{index}", server.mask(index))
    x = pixels(server.backbone, 1)
    for _ in range(1 if quick else 3):
        rate = 0.0
        for law in LAWS:
            order = requests_of(law, n, np.random.default_rng(0))
            rate = rate or 0.6 * asyncio.run(drive(server, order, x, None, law, out))  # identical comes first
            if law != LAWS[0]:
                asyncio.run(drive(server, order, x, None, law, out))
            asyncio.run(drive(server, order, x, rate, law, out))


async def drive(
    server: Running, order: Sequence[int], x: NDArray[np.float32], rate: float | None, law: str, out: Path | None
) -> float:
    """Send the requests, `rate` a second or by clients that wait; rows of it; returns images a second."""
    waits_ms: list[float] = []
    gaps = np.random.default_rng(1).exponential(1 / rate, len(order)) if rate else np.zeros(len(order))
    todo = iter(list(order))
    async with AsyncClient(server.url) as client:

        async def one(index: int, planned: float) -> None:
            await client.embed(x, f"load-{index}")
            waits_ms.append(1e3 * (time.perf_counter() - planned))

        async def waits_for_answers() -> None:
            for index in todo:
                await one(index, time.perf_counter())

        swaps, cpu, began = swaps_of(server), server.cpu_s(), time.perf_counter()
        if rate is None:
            await asyncio.gather(*(waits_for_answers() for _ in range(CLIENTS)))
        else:
            planned = began + np.cumsum(gaps)
            tasks = []
            for index, at in zip(order, planned, strict=True):
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                tasks.append(asyncio.create_task(one(index, at)))
            await asyncio.gather(*tasks)
        took_s = time.perf_counter() - began
    params: dict[str, Any] = {"model": server.backbone.architecture, "law": law, "requests": len(order)}
    params |= {"masks": len(set(order)), "slots": SLOTS}
    params |= {"clients": CLIENTS} if rate is None else {"arrivals a second": round(rate, 2)}
    variant = "closed loop" if rate is None else "open loop"
    row("http", variant, params, "latency", "ms", waits_ms, out=out)
    row("http", variant, params, "latency p99", "ms", [float(np.percentile(waits_ms, 99))], out=out)
    row("http", variant, params, "throughput", "images/s", [len(order) / took_s], out=out)
    row("http", variant, params, "processor time per image", "ms", [1e3 * (server.cpu_s() - cpu) / len(order)], out=out)
    row("http", variant, params, "swaps", "1", [swaps_of(server) - swaps], out=out)
    return len(order) / took_s


def requests_of(law: str, n: int, rng: np.random.Generator) -> list[int]:
    """The mask of each of n requests, in order of arrival."""
    return tasks_of(law, n, n if law == "distinct" else ceil(sqrt(n)), rng)


def swaps_of(server: Running) -> float:
    """Slots written since the server began."""
    return metric_of(server, "smn_swap_total")


def metric_of(server: Running, name: str) -> float:
    """A metric without labels, as it stands now."""
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def stages(server_timing: str) -> dict[str, float]:
    """Milliseconds by stage."""
    parts = [part.strip().split(";dur=") for part in server_timing.split(",")]
    return {name: float(ms) for name, ms in parts}


if __name__ == "__main__":
    main()
