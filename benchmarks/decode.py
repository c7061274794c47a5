"""How many decode workers pay: images/s of 1 to N threads that decode JPEGs, alone and beside forwards, in turn.

    .venv/bin/python -m benchmarks.decode [--quick] [--workers 1,2,4] [--model NAME] [--out FILE.jsonl]

As the server does it: `smn_core.images` in a pool of threads, an event loop that hands the images out. Meanwhile the
loop wakes every 5 ms and notes how late it is: a request that only passes through waits as long. `beside forwards`:
another thread runs the model all the time, with one torch thread, as the engine's does; its forwards are held against
some that ran alone. Photos: 12 megapixels, read at a reduced scale, and 500 x 375. Wall time, since cores are what
workers share: believe it from a quiet machine only.
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
from smn_core.backbone import PREPROCESS_KEYS
from smn_core.images import ImageReader

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
    most = min(8, 2 * (os.cpu_count() or 1))
    workers = (
        [int(n) for n in args.workers.split(",")] if args.workers else [n for n in (1, 2, 3, 4, 6, 8) if n <= most]
    )
    model = timm.create_model(args.model, num_classes=0).eval()
    for name, (width, height) in PHOTOS.items():
        n_images = (8 if name == "12 MP" else 48) // (2 if args.quick else 1)
        measure(model, name, photo(width, height), n_images, workers, 2 if args.quick else 9, args.out)


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
