"""What a swap costs: writing theta' of a mask into a slot, against a plain copy of the same bytes, in turn.

    .venv/bin/python -m benchmarks.swap [--quick] [--out benchmarks/results/swap.jsonl]

The weights are random; the cost depends on sizes and densities alone. All variants write into the slots of a ring in
turn, as a server does: the slot that was used longest ago is in no cache. One thread is timed by its own processor
time, which neighbours on the machine disturb less, two by the wall clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import cycle
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
DENSITIES = (0.5, 0.93, 0.99, 0.9995)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RING_BYTES = 256 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 turns instead of 25")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    for name in MODELS:
        for dtype in TYPES:
            for density in DENSITIES:
                measure(name, dtype, density, turns=5 if args.quick else 25, out=args.out)


def measure(name: str, dtype: str, density: float, turns: int, out: Path | None) -> None:
    """Time copy and swaps in turn (A B C A B C ...) and print milliseconds and the ratio to the copy of each turn."""
    with torch.device("meta"):
        layout = layout_of(timm.create_model(name, num_classes=0))
    rng = np.random.default_rng(0)
    theta = torch.from_numpy(rng.standard_normal(layout.n_elements, dtype=np.float32)).to(TYPES[dtype])
    mask = make_compact(random_mask(layout, density, rng), theta.device)
    slots = [torch.zeros_like(theta) for _ in range(max(4, RING_BYTES // theta.nbytes))]
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[theta.dtype]
    source = theta.view(bits).numpy()
    one, two = applier_for(theta, layout, 1), applier_for(theta, layout, 2)
    variants: dict[str, Callable[[torch.Tensor], object]] = {
        "copy": lambda slot: np.copyto(slot.view(bits).numpy(), source),
        "swap, 1 thread": lambda slot: one.write(mask, slot),
        "swap, 2 threads": lambda slot: two.write(mask, slot),
    }
    clocks = {"process": time.process_time, "wall": time.perf_counter}
    seconds: dict[tuple[str, str], list[float]] = {(v, c): [] for v in variants for c in clocks}
    ring = cycle(slots)
    for turn in range(turns + 2):
        for variant, run in variants.items():
            slot = next(ring)
            began = {word: clock() for word, clock in clocks.items()}
            run(slot)
            for word, clock in clocks.items():
                if turn >= 2:
                    seconds[variant, word].append(clock() - began[word])
    params = {"model": name, "dtype": dtype, "density": density, "bytes": theta.nbytes}
    for variant, word in (("copy", "process"), ("swap, 1 thread", "process"), ("swap, 2 threads", "wall")):
        values, copy = np.array(seconds[variant, word]), np.array(seconds["copy", word])
        row("swap", variant, params | {"clock": word}, "time", "ms", values * 1e3, out=out)
        if variant != "copy":
            row("swap", variant, params | {"clock": word}, "ratio to copy", "x", values / copy, out=out)


if __name__ == "__main__":
    main()
