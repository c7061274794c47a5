"""How many decode workers pay, and what processes cost beside threads.

Images/s of 1 to N threads that decode JPEGs, alone and beside forwards, in turn.

    .venv/bin/python -m benchmarks.decode [--quick] [--workers 1,2,4] [--model NAME] [--out FILE.jsonl]

`smn_core.images` in a pool of threads, an event loop that hands the images out. Meanwhile the
loop wakes every 5 ms and notes how late it is: a request that only passes through waits as long. `beside forwards`:
another thread runs the model all the time, with one torch thread, as the engine's does; its forwards are held against
some that ran alone. Photos: 12 megapixels, read at a reduced scale, and 500 x 375. Wall time, since cores are what
workers share: believe it from a quiet machine only.

Then the server's decode processes (`service.decoding`) and as many threads in turn, each image a request of its own:
processor time an image, of this process and its workers together, and wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from benchmarks.photos import photo
from benchmarks.rows import row
from service.decoding.pool import DecodePool
from smn_core.backbone import PREPROCESS_KEYS
from smn_core.images import MAX_PIXELS, ImageReader
from smn_core.verbs.heap import keep_freed_memory

MODEL = "vit_tiny_patch16_224"
PHOTOS = {"12 MP": (4000, 3000), "small": (500, 375)}
TICK_S = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 turns instead of 9, fewer images")
    parser.add_argument(
        "--workers", help="numbers of workers, with commas; by default up to twice the cores, at most 8"
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `smn serve` does
    most = min(8, 2 * (os.cpu_count() or 1))
    workers = (
        [int(n) for n in args.workers.split(",")] if args.workers else [n for n in (1, 2, 3, 4, 6, 8) if n <= most]
    )
    model = timm.create_model(args.model, num_classes=0).eval()
    for name, (width, height) in PHOTOS.items():
        n_images = (8 if name == "12 MP" else 48) // (2 if args.quick else 1)
        measure(model, name, photo(width, height), n_images, workers, 2 if args.quick else 9, args.out)
        asyncio.run(compare(model, name, photo(width, height), n_images, 4 if args.quick else 15, args.out))


@dataclass
class Found:
    """One value a turn."""

    rate: list[float] = field(default_factory=list)
    late_p50: list[float] = field(default_factory=list)
    late_p99: list[float] = field(default_factory=list)
    forward_s: list[float] = field(default_factory=list)


def measure(
    model: nn.Module, name: str, data: bytes, n_images: int, workers: Sequence[int], turns: int, out: Path | None
) -> None:
    """Rows of one photo, all numbers of workers in turn; the first turn warms up."""
    preprocess = {key: value for key, value in resolve_model_data_config(model).items() if key in PREPROCESS_KEYS}
    reader, size = ImageReader(preprocess), preprocess["input_size"]
    found = {(n, beside): Found() for n in workers for beside in (False, True)}
    alone: list[float] = []
    for turn in range(turns + 1):
        with Forwards(model, size) as forwards:
            time.sleep(0.5)
        if turn:
            alone += forwards.seconds
        for (n, beside), values in found.items():
            with ThreadPoolExecutor(n) as pool, Forwards(model, size, idle=not beside) as forwards:
                took_s, late_ms = asyncio.run(decode(pool, reader, data, n_images))
            if turn:
                values.rate.append(n_images / took_s)
                values.late_p50.append(float(np.percentile(late_ms, 50)))
                values.late_p99.append(float(np.percentile(late_ms, 99)))
                values.forward_s += forwards.seconds
    for (n, beside), values in found.items():
        variant = "beside forwards" if beside else "alone"
        params: dict[str, Any] = {"image": name, "workers": n, "bytes": len(data)}
        one = np.array(found[workers[0], beside].rate)
        row("decode", variant, params, "images/s", "images/s", values.rate, out=out)
        row("decode", variant, params, f"images/s, ratio to {workers[0]} worker", "x", values.rate / one, out=out)
        row("decode", variant, params, "event loop late, p50", "ms", values.late_p50, out=out)
        row("decode", variant, params, "event loop late, p99", "ms", values.late_p99, out=out)
        if beside and values.forward_s and alone:
            ratio = np.array(values.forward_s) / np.median(alone)
            row("decode", variant, params, "forward, ratio to one alone", "x", ratio, out=out)


async def compare(model: nn.Module, name: str, data: bytes, n_images: int, turns: int, out: Path | None) -> None:
    """Rows of one photo: two threads and two processes, in turn; the first turn warms up."""
    preprocess = {key: value for key, value in resolve_model_data_config(model).items() if key in PREPROCESS_KEYS}
    reader, loop = ImageReader(preprocess), asyncio.get_running_loop()
    pool = DecodePool(preprocess, MAX_PIXELS, n_workers=2, memory_bytes=2**30, cpu_s=5.0)
    await pool.start()

    async def by_process(threads: ThreadPoolExecutor) -> None:
        await loop.run_in_executor(threads, reader.normalise, await pool.decode("client", [data]))

    async def by_thread(threads: ThreadPoolExecutor) -> None:
        await loop.run_in_executor(threads, reader, data)

    ways = {"threads": by_thread, "processes": by_process}
    cpu_ms: dict[str, list[float]] = {way: [] for way in ways}
    wall_ms: dict[str, list[float]] = {way: [] for way in ways}
    with ThreadPoolExecutor(2) as threads:
        for turn in range(turns + 1):
            for way in list(ways)[:: 1 if turn % 2 else -1]:
                began, cpu_began = time.perf_counter(), _processor_s(pool)
                await asyncio.gather(*(ways[way](threads) for _ in range(n_images)))
                if turn:
                    wall_ms[way].append(1e3 * (time.perf_counter() - began) / n_images)
                    cpu_ms[way].append(1e3 * (_processor_s(pool) - cpu_began) / n_images)
    pool.close()
    params: dict[str, Any] = {"image": name, "workers": 2, "bytes": len(data)}
    for way in ways:
        row("decode", way, params, "processor time an image", "ms", cpu_ms[way], out=out)
        row("decode", way, params, "wall time an image", "ms", wall_ms[way], out=out)
    ratio = np.array(cpu_ms["processes"]) / np.array(cpu_ms["threads"])
    row("decode", "processes", params, "processor time, ratio to threads", "x", ratio, out=out)


def _processor_s(pool: DecodePool) -> float:
    """Processor time of this process and of its decode workers, none of which ends meanwhile."""
    return time.process_time() + sum(
        int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9 for pid in pool.pids
    )


async def decode(
    pool: ThreadPoolExecutor, reader: ImageReader, data: bytes, n_images: int
) -> tuple[float, list[float]]:
    """Decode an image n times; returns the seconds that took, and how late the loop woke, in ms."""
    loop, late_ms = asyncio.get_running_loop(), [0.0]

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            late_ms.append(1e3 * (time.perf_counter() - due))

    ticking = asyncio.create_task(tick())
    began = time.perf_counter()
    await asyncio.gather(*(loop.run_in_executor(pool, reader, data) for _ in range(n_images)))
    took_s = time.perf_counter() - began
    ticking.cancel()
    return took_s, late_ms


class Forwards:
    """A thread that runs the model on 8 images again and again, within the block; `seconds` of each."""

    def __init__(self, model: nn.Module, size: tuple[int, ...], *, idle: bool = False) -> None:
        self.seconds: list[float] = []
        self._model, self._x, self._end = model, torch.randn(8, *size), threading.Event()
        self._thread = None if idle else threading.Thread(target=self._run)

    def __enter__(self) -> Forwards:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        torch.set_num_threads(1)
        while not self._end.is_set():
            began = time.perf_counter()
            self._model(self._x)
            self.seconds.append(time.perf_counter() - began)


if __name__ == "__main__":
    main()
