"""What 1,000 masks of a ViT-Tiny cost a real server: to register, to serve each once, to list; and in memory.

    .venv/bin/python -m benchmarks.many [--quick] [--model NAME] [--out benchmarks/results/many.jsonl]

register   a new name in a directory registry: the last ones against the first ones.
serve      the first answer through each mask, one client: the last ones against the first ones; and an answer through
           the first mask, in memory, with all masks there against none but it.
list       GET /masks, a page as long as the first ones: with all masks there against the same page when no others were.
memory     of the server's process, grown by a mask that is cached; and what the server counts for it; each against one
           bit a weight.

Masks are random: density .9995 as ViTs have, and .5, where the bits are as many as can be.
"""

from __future__ import annotations

import argparse
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rows import row
from benchmarks.server import Running, pixels, serving
from service.client import Client
from service.registry.open import open_registry

MODEL = "vit_tiny_patch16_224"
# Masks that are served before memory is looked at: what the first ones bring along, slots too, is there by then.
WARM, SLOTS, TURNS = 3, 2, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 masks instead of 1,000")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--masks", type=int, help="another number of them")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    n_masks = args.masks or (200 if args.quick else 1000)
    for density in (0.9995, 0.5):
        with serving(args.model, slots=SLOTS) as server:
            measure(server, n_masks if density > 0.9 else max(20, n_masks // 5), density, args.out)


def measure(server: Running, n_masks: int, density: float, out: Path | None) -> None:
    """Register, serve and list masks of one density."""
    params: dict[str, Any] = {"model": server.backbone.architecture, "density": density, "masks": n_masks}
    edge = min(50, n_masks // 4)
    x = pixels(server.backbone, 1)

    def ratio(variant: str, metric: str, last: list[float], first: list[float]) -> None:
        values = np.array(last) / np.median(first)
        row(
            "many",
            variant,
            params | {"first_ms": round(1e3 * float(np.median(first)), 3)},
            metric,
            "x",
            values,
            out=out,
        )

    registry = open_registry(server.registry, server.backbone.fingerprint)

    def publish(index: int) -> float:
        data = server.mask(index, density)
        return _seconds(lambda: registry.publish("masks", _name(index), data))

    with Client(server.url) as client:

        def embed(index: int) -> float:
            return _seconds(lambda: client.embed(x, _name(index)))

        registered = [publish(index) for index in range(edge)]
        for index in range(WARM):
            embed(index)
        hot = [embed(0) for _ in range(edge)]
        pages = [_seconds(lambda: _page(server, edge)) for _ in range(TURNS)]
        registered += [publish(index) for index in range(edge, n_masks)]
        before, counted = server.memory_bytes(), client.info()["memory_bytes"]["masks"]
        cold = [embed(index) for index in range(WARM, n_masks)]
        grown = (server.memory_bytes() - before) / len(cold)
        memory = (client.info()["memory_bytes"]["masks"] - counted) / len(cold)
        hot_after = [embed(0) for _ in range(edge)]
        pages_after = [_seconds(lambda: _page(server, edge)) for _ in range(TURNS)]
    registry.close()
    ratio("register", "time ratio, last to first", registered[-edge:], registered[:edge])
    ratio("serve, cold", "time ratio, last to first", cold[-edge:], cold[:edge])
    ratio("serve the first, hot", "time ratio, all masks there to none", hot_after, hot)
    ratio("list a page", "time ratio, all masks there to one page", pages_after, pages)
    bits = server.backbone.layout.n_weights / 8
    for variant, size in (("process, grown", grown), ("counted", memory)):
        row("many", variant, params, "bytes a cached mask", "B", [size], out=out)
        row("many", variant, params, "bytes a cached mask, ratio to bits/8", "x", [size / bits], out=out)


def _name(index: int) -> str:
    return f"mask-{index:05}"


def _page(server: Running, size: int) -> None:
    with urllib.request.urlopen(f"{server.url}/masks?limit={size}") as answer:
        answer.read()


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
