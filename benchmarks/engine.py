"""What many masks cost in the engine, against one mask and against plain timm, in turn.

    .venv/bin/python -m benchmarks.engine [--quick] [--only NAME] [--model NAME] [--threads 2]
    [--out benchmarks/results/engine.jsonl]
    .venv/bin/python -m benchmarks.engine --fit      # the constants of smn_core/engine/costs.py, measured here

Questions: hot (a mask that is in place against a plain forward), traffic (100 masks by Punica's laws against one),
batch (fewer images a forward against 32), swap (a patch against a slot, and bytes), set (working sets of 1/4 to 8 times
the slots), soak (memory of 20,000 requests).
Weights and masks are random; cost depends on sizes and densities alone. Times are one thread's processor time unless
`--wall`: neighbours on the machine disturb it less. Several threads are timed by the wall.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from torch import Tensor

from benchmarks.fit_costs import fit
from benchmarks.masks import random_mask
from benchmarks.rows import row
from benchmarks.turns import CLOCKS, clock_name, seconds_in_turn
from smn_core.backbone import wrap
from smn_core.engine import Engine, Segment
from smn_core.engine.wearable import WearableMask
from smn_core.spec import BackboneSpec
from smn_core.verbs.heap import keep_freed_memory

# Densities that real masks of these models have (docs/results.md), and one that takes slots.
MODELS = {"vit_tiny_patch16_224": (0.9995, 0.93), "resnet50": (0.99, 0.93), "vit_base_patch32_224": (0.9995,)}
SLOTS = 16
BATCH_SIZES = (4, 8, 16, 32)
LAWS = ("identical", "zipf:1.5", "uniform", "distinct")
TINY = {"img_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}


class Bench:
    """Settings of a run, and where its rows go."""

    def __init__(self, turns: int, batch: int, wall: bool, threads: int, out: Path | None) -> None:
        self.turns, self.batch, self.threads, self.out = turns, batch, threads, out
        self.params: dict[str, Any] = {"threads": threads, "clock": clock_name(wall, threads)}

    def seconds(self, runs: dict[str, Callable[[], object]], turns: int | None = None) -> dict[str, np.ndarray]:
        """Seconds of every run, in turn; one turn warms up."""
        return seconds_in_turn(runs, turns or self.turns, CLOCKS[self.params["clock"]])

    def row(self, bench: str, variant: str, params: dict[str, Any], metric: str, unit: str, values: Any) -> None:
        row(bench, variant, {**params, **self.params}, metric, unit, values, out=self.out)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="fewer turns, smaller batches")] = False,
    only: Annotated[str | None, typer.Option(help="one question")] = None,
    model: Annotated[str | None, typer.Option(help="one model")] = None,
    wall: Annotated[bool, typer.Option("--wall", help="wall time instead of processor time")] = False,
    threads: Annotated[int, typer.Option(help="torch's threads; more than one are timed by the wall")] = 1,
    fitted: Annotated[bool, typer.Option("--fit", help="measure the constants of the cost model instead")] = False,
    out: Annotated[Path | None, typer.Option(help="append the rows to this file too")] = None,
) -> None:
    """Print the rows of one question or all."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the command smn does
    if fitted:
        print(fit(5 if quick else 15, out))
        return
    bench = Bench(3 if quick else 9, 16 if quick else 32, wall, threads, out)
    for name in [model] if model else MODELS:
        for question, ask in {"hot": hot, "swap": swap, "traffic": traffic, "batch": batch, "set": working_set}.items():
            for density in MODELS.get(name, (0.9995,)) if only in (None, question) else ():
                ask(bench, name, density)
    if only in (None, "soak"):
        soak(bench, 2_000 if quick else 20_000)


def hot(bench: Bench, name: str, density: float) -> None:
    """A mask that is in place, in a slot or patched, against a plain forward of a model of its own."""
    plain = timm.create_model(name, num_classes=0).eval()
    engine, (digest,) = _engine(bench, name, density, 1)
    for batch in (1, 8, bench.batch):
        x = torch.randn(batch, *engine.backbone.preprocess["input_size"])
        runs: dict[str, Callable[[], object]] = {
            "plain": partial(_plain, plain, x),
            "engine": partial(engine.embed, x, [Segment(digest, 0, batch)]),
        }
        taken = bench.seconds(runs, 5 * bench.turns if batch == 1 else bench.turns)
        params = {"model": name, "density": density, "batch": batch}
        bench.row("hot", "engine", params, "images/s, ratio to plain timm", "x", taken["plain"] / taken["engine"])
        for variant, seconds in taken.items():
            bench.row("hot", variant, params, "time an image", "ms", seconds * 1e3 / batch)


def traffic(bench: Bench, name: str, density: float) -> None:
    """Batches of 100 masks by each law, against batches of one mask: images a second."""
    engine, digests = _engine(bench, name, density, 100)
    x = torch.randn(bench.batch, *engine.backbone.preprocess["input_size"])
    rng = np.random.default_rng(0)
    batches = {law: _batches(law, digests, bench.batch, rng) for law in LAWS}

    def embed(law: str) -> None:
        engine.embed(x, next(batches[law]))

    taken = bench.seconds({law: partial(embed, law) for law in LAWS})
    params = {"model": name, "density": density, "masks": 100, "slots": SLOTS, "batch": bench.batch}
    for law in LAWS[1:]:
        bench.row("traffic", law, params, "images/s, ratio to one mask", "x", taken["identical"] / taken[law])
    bench.row("traffic", "identical", params, "time an image", "ms", taken["identical"] * 1e3 / bench.batch)


def batch(bench: Bench, name: str, density: float) -> None:
    """32 images in batches of fewer, through 100 masks by each law, against one batch of all: images a second."""
    engine, digests = _engine(bench, name, density, 100)
    x = torch.randn(BATCH_SIZES[-1], *engine.backbone.preprocess["input_size"])

    def embed(stream: Any, size: int) -> None:
        for part in x.split(size):
            engine.embed(part, next(stream))

    runs: dict[str, Callable[[], object]] = {
        f"{law} {size}": partial(embed, _batches(law, digests, size, np.random.default_rng(0)), size)
        for law in ("identical", "zipf:1.5", "distinct")
        for size in BATCH_SIZES
    }
    taken = bench.seconds(runs)
    for run, seconds in taken.items():
        law, size = run.split()
        params = {"model": name, "density": density, "masks": 100, "slots": SLOTS, "batch": int(size)}
        whole = taken[f"{law} {BATCH_SIZES[-1]}"]
        bench.row("batch", law, params, "images/s, ratio to batches of 32", "x", whole / seconds)
        bench.row("batch", law, params, "time a batch", "ms", seconds * 1e3 * int(size) / BATCH_SIZES[-1])


def swap(bench: Bench, name: str, density: float) -> None:
    """Putting a mask on by a patch, against writing its slot, against a copy; and the bytes that a mask keeps."""
    engine, digests = _engine(bench, name, density, 4)
    masks = cycle([engine._prepared[digest] for digest in digests])
    theta, other = engine._theta.flat, torch.empty_like(engine._theta.flat)
    runs: dict[str, Callable[[], object]] = {
        "copy": lambda: other.copy_(theta),
        "slot": lambda: engine._theta.applier.write(next(masks).compact, other),
    }
    if next(masks).patched:
        runs["patch"] = lambda: _wear(engine, next(masks))
        # Copy and slot drove the array out of the caches before; the second one finds it there.
        runs["patch, array in cache"] = lambda: _wear(engine, next(masks))
    taken = bench.seconds(runs, 5 * bench.turns)
    params = {"model": name, "density": density, "bytes": theta.nbytes}
    bench.row("engine swap", "slot", params, "ratio to copy", "x", taken["slot"] / taken["copy"])
    for variant in list(runs)[2:]:
        bench.row("engine swap", variant, params, "ratio to slot", "x", taken[variant] / taken["slot"])
    n_bytes = [next(masks).nbytes for _ in digests]
    bench.row("resident", "mask", params, "bytes", "B", n_bytes)
    bench.row(
        "resident", "mask", params, "ratio to bits/8", "x", np.array(n_bytes) * 8 / engine.backbone.layout.n_weights
    )


def working_set(bench: Bench, name: str, density: float) -> None:
    """Batches of one mask, drawn uniformly from sets of 1/4 to 8 times the slots, against always the same one."""
    engine, digests = _engine(bench, name, density, 8 * SLOTS)
    rng = np.random.default_rng(0)
    x = torch.randn(8, *engine.backbone.preprocess["input_size"])

    def embed(n_masks: int) -> None:
        engine.embed(x, [Segment(digests[rng.integers(n_masks)], 0, len(x))])

    sizes = (1, SLOTS // 4, SLOTS, SLOTS * 5 // 4, 2 * SLOTS, 4 * SLOTS, 8 * SLOTS)
    taken = bench.seconds({f"{n} masks": partial(embed, n) for n in sizes}, 2 * bench.turns)
    params = {"model": name, "density": density, "slots": SLOTS, "batch": len(x)}
    for variant, seconds in taken.items():
        bench.row("set", variant, params, "images/s, ratio to one mask", "x", taken["1 masks"] / seconds)


def soak(bench: Bench, requests: int) -> None:
    """Growth of the process over mixed requests on a tiny model, with masks released and prepared all the time."""
    engine, digests = _engine(bench, "vit_tiny_patch16_224", 0.99, 100, TINY)
    rng, x = np.random.default_rng(1), torch.randn(8, 3, 16, 16)  # not what the engine's own masks were drawn from
    peaks, now = [], []
    masks = [random_mask(engine.backbone.layout, d, rng, engine.backbone) for d in (0.5, 0.9, 0.999)]
    for request in range(requests):
        chosen = sorted(rng.choice(digests, 8).tolist())
        engine.embed(x, [Segment(digest, i, i + 1) for i, digest in enumerate(chosen)])
        mask = masks[request % 3]
        assert mask.digest is not None
        engine.prepare(mask)
        engine.embed(x, [Segment(mask.digest, 0, 8)])
        engine.release(mask.digest)
        if (request + 1) % (requests // 10) == 0:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            now.append(_resident_bytes())
    params = {"requests": requests, "masks": 103, "slots": SLOTS, "rss_after_tenth": peaks[0]}
    bench.row("soak", "mixed", params, "growth of peak memory after the first tenth", "B", [peaks[-1] - peaks[0]])
    # The later half of the run against its first tenth: growth shows in every value, noise in some.
    bench.row("soak", "mixed", params, "memory at the end, ratio to after a tenth", "x", np.array(now[5:]) / now[0])


def _resident_bytes() -> int:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def _engine(
    bench: Bench, name: str, density: float, n_masks: int, args: dict[str, Any] | None = None
) -> tuple[Engine, list[str]]:
    """An engine of random weights with prepared masks, and their digests."""
    args, rng = args or {}, np.random.default_rng(0)
    model = timm.create_model(name, num_classes=0, **args)
    engine = Engine(wrap(model, name, BackboneSpec(name, args=args)), slots=SLOTS, threads=bench.threads, capacity=32)
    digests = []
    for _ in range(n_masks):
        mask = random_mask(engine.backbone.layout, density, rng, engine.backbone)
        engine.prepare(mask)
        digests.append(str(mask.digest))
    return engine, digests


def _batches(law: str, digests: list[str], batch: int, rng: np.random.Generator) -> Any:
    """Segments of one batch after another, each mask's images together as the batcher hands them over."""
    ranks = np.arange(1, len(digests) + 1, dtype=float)
    weights = {"zipf:1.5": ranks**-1.5, "uniform": np.ones_like(ranks)}.get(law)
    first = 0
    while True:
        if law == "identical":
            chosen = [0] * batch
        elif weights is None:
            chosen = [(first + i) % len(digests) for i in range(batch)]
            first += batch
        else:
            chosen = sorted(rng.choice(len(digests), batch, p=weights / weights.sum()).tolist())
        edges = [0, *(i for i in range(1, batch) if chosen[i] != chosen[i - 1]), batch]
        yield [Segment(digests[chosen[a]], a, b) for a, b in pairwise(edges)]


@torch.inference_mode()
def _plain(model: torch.nn.Module, x: Tensor) -> Tensor:
    return model(x)


@torch.inference_mode()
def _wear(engine: Engine, mask: WearableMask) -> None:
    engine._wardrobe.wear(mask)


if __name__ == "__main__":
    typer.run(main)
