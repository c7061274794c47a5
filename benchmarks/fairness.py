"""Does one who floods keep others waiting? A quiet client beside a flood of ten connections, and beside one.

    .venv/bin/python -m benchmarks.fairness [--quick] [--model NAME] [--images 64] [--out FILE.jsonl]

Each of two keys sends requests of so many images through one mask, and waits for each answer before the next. The quiet
one has one connection; the other has one connection, then ten, in turn. With equal shares both halves of a turn look
alike to the quiet one, as long as the other always has something waiting: ratio 1, target at most 2. None of its
requests may get 429: it asks for less than its share. The server admits eight requests of the other at once. The load
generator shares the server's cores; on a machine without time to spare take a smaller model and fewer images.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import httpx2
import numpy as np

from benchmarks.photos import photo
from benchmarks.rows import row
from benchmarks.server import Running, serving
from service.client import Client

MODEL = "vit_tiny_patch16_224"
FLOOD = 10
ADMITTED = 8
"""Requests of the other that the server admits at once; two connections more than that stand outside."""
WAIT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--images", type=int, default=64, help="of a request of the other")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    flags = ["--admin-keys", "admin", "--api-keys", "quiet,flood", "--timeout-ms", f"{1000 * WAIT_S:.0f}"]
    flags += ["--queue-images", str(ADMITTED * args.images)]
    with serving(args.model, None, *flags) as server:
        with Client(server.url, "admin") as client:
            client.push("mask", server.mask(0))
        measure(server, args.images, args.quick, args.out)


def measure(server: Running, flood_images: int, quick: bool, out: Path | None) -> None:
    """Rows of the quiet client's latency and refusals, beside one connection and beside ten."""
    turns, requests = (2, 10) if quick else (5, 40)
    for quiet_images in (1, max(1, flood_images // 4)):
        found: dict[int, list[float]] = {1: [], FLOOD: []}
        refused: dict[int, int] = {1: 0, FLOOD: 0}
        for _ in range(turns):
            for connections in found:
                waits_ms, n_refused = asyncio.run(beside(server, connections, requests, quiet_images, flood_images))
                found[connections] += waits_ms
                refused[connections] += n_refused
        params = {"model": server.backbone.architecture, "images a request": quiet_images, "of the other": flood_images}
        for connections, waits_ms in found.items():
            many = params | {"connections of the other": connections}
            row("fairness", "quiet", many, "latency", "ms", waits_ms, out=out)
            row("fairness", "quiet", many, "latency p95", "ms", [p95(waits_ms)], out=out)
            share = refused[connections] / (refused[connections] + len(waits_ms))
            row("fairness", "quiet", many, "requests refused", "1", [share], out=out)
        row("fairness", "quiet", params, "p95 ratio, 10:1 to 1:1", "x", [p95(found[FLOOD]) / p95(found[1])], out=out)


async def beside(
    server: Running, connections: int, requests: int, quiet_images: int, flood_images: int
) -> tuple[list[float], int]:
    """Milliseconds of each request of the quiet client that was answered, and how many got 429."""
    waits_ms: list[float] = []
    refused = 0
    async with client_of(server, "quiet") as quiet, client_of(server, "flood") as flood:
        flooding = [asyncio.create_task(without_end(flood, flood_images)) for _ in range(connections)]
        while len(waits_ms) < requests:
            began = time.perf_counter()
            answer = await send(quiet, quiet_images)
            if answer.status_code == 429:
                refused += 1
                continue
            answer.raise_for_status()
            waits_ms.append(1e3 * (time.perf_counter() - began))
        failed = [task for task in flooding if task.done()]
        for task in flooding:
            task.cancel()
        await asyncio.wait(flooding)  # a request that is cancelled may say that its connection was closed
    for task in failed:
        task.result()
    return waits_ms, refused


async def without_end(client: httpx2.AsyncClient, n_images: int) -> None:
    while True:
        await send(client, n_images)


async def send(client: httpx2.AsyncClient, n_images: int) -> httpx2.Response:
    files = [("image", ("photo.jpg", photo(), "image/jpeg"))] * n_images
    return await client.post("/embed", params={"mask": "mask"}, files=files, headers={"Accept": "application/x-npy"})


def client_of(server: Running, key: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url, timeout=WAIT_S, headers={"Authorization": f"Bearer {key}"})


def p95(values: list[float]) -> float:
    return float(np.percentile(values, 95))


if __name__ == "__main__":
    main()
