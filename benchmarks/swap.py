"""What a swap costs: writing theta' of a mask into a slot, against a plain copy of the same bytes, in turn.

    .venv/bin/python -m benchmarks.swap [--quick] [--out benchmarks/results/swap.jsonl]

The weights are random; the cost depends on sizes and densities alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch

from benchmarks.masks import random_mask
from benchmarks.rows import row
from smn_core.engine.apply import applier_for
from smn_core.engine.compact import make_compact
from smn_core.layout import layout_of

MODELS = ("vit_tiny_patch16_224", "resnet50", "vit_base_patch32_224")
DENSITIES = (0.5, 0.95, 0.99, 0.9995)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 turns instead of 25")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    for name in MODELS:
        for density in DENSITIES:
            measure(name, density, turns=5 if args.quick else 25, out=args.out)


def measure(name: str, density: float, turns: int, out: Path | None) -> None:
    """Time copy and swaps in turn (A B C A B C ...) and print milliseconds and the ratio to the copy of each turn."""
    with torch.device("meta"):
        layout = layout_of(timm.create_model(name, num_classes=0))
    rng = np.random.default_rng(0)
    theta = torch.from_numpy(rng.standard_normal(layout.n_elements, dtype=np.float32))
    mask, slot = random_mask(layout, density, rng), torch.zeros_like(theta)
    variants: dict[str, Callable[[], object]] = {"copy": lambda: np.copyto(slot.numpy(), theta.numpy())}
    for threads in (1, 2):
        applier = applier_for(theta, layout, threads)
        loaded = make_compact(mask, theta.device)
        variants[f"swap, {threads} thread{'s' * (threads > 1)}"] = partial(applier.write, loaded, slot)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns + 2):
        for variant, run in variants.items():
            began = time.perf_counter()
            run()
            seconds[variant].append(time.perf_counter() - began)
    params = {"model": name, "density": density, "bytes": 4 * layout.n_elements}
    copy = np.array(seconds["copy"][2:])
    for variant, taken in seconds.items():
        values = np.array(taken[2:])
        row("swap", variant, params, "time", "ms", values * 1e3, out=out)
        if variant != "copy":
            row("swap", variant, params, "ratio to copy", "x", values / copy, out=out)


if __name__ == "__main__":
    main()
