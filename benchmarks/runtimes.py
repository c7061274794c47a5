"""A hot mask in process beside what a user would take for one model: plain timm, ONNX Runtime, OpenVINO; and the limit.

    .venv/bin/python -m benchmarks.runtimes [--quick] [--model NAME] [--wall] [--out benchmarks/results/runtimes.jsonl]

All on one thread and on the same masked weights, in turn; before anything is timed their embeddings are compared with
plain timm's. float32, and bfloat16 where the processor has it (ONNX Runtime has none). The limit is the model's
floating-point operations over those of the best matrix product that this core reaches, in torch, MKL or oneDNN.
Times are the process's processor time unless `--wall`: neighbours on the machine disturb it less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.masks import random_mask
from benchmarks.peers.runtimes import export, open_model
from benchmarks.rows import row
from benchmarks.server import random_weights
from benchmarks.turns import CLOCKS, clock_name, seconds_in_turn
from smn_core.backbone import load_backbone
from smn_core.engine import Engine, Segment
from smn_core.precision import slow_on_cpu
from smn_core.verbs.export import masked_weights
from smn_core.verbs.heap import keep_freed_memory

MODELS = ("vit_tiny_patch16_224", "vit_base_patch32_224", "resnet50")
DENSITY = 0.93
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
SMN, PLAIN, BEST = "smn", "plain timm", "best of them"
RUNTIMES = {"float32": {"onnx runtime": "onnxruntime", "openvino": "openvino"}, "bfloat16": {"openvino": "openvino"}}
SIDES = (512, 1024, 2048)
"""Of the square matrices whose products tell what a core reaches."""
Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ViT-Tiny and ResNet-50, batches of 1 and 8, 3 turns")
    parser.add_argument("--model", help="one model")
    parser.add_argument("--wall", action="store_true", help="wall time instead of processor time")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command smn does
    bench = Bench(3 if args.quick else 9, clock_name(args.wall), args.out)
    batches = (1, 8) if args.quick else (1, 8, 32)
    for name in [args.model] if args.model else MODELS[::2] if args.quick else MODELS:
        with tempfile.TemporaryDirectory() as folder:
            measure(bench, name, batches, Path(folder))


class Bench:
    """Settings of a run, where its rows go, and the best product by type."""

    def __init__(self, turns: int, clock: str, out: Path | None) -> None:
        self.turns, self.clock, self.out = turns, CLOCKS[clock], out
        self.params: dict[str, Any] = {"threads": 1, "clock": clock}
        self.best: dict[str, float] = {}

    def seconds(self, runs: dict[str, Run], turns: int) -> dict[str, NDArray[np.float64]]:
        """Seconds of every run, in turn; one turn warms up."""
        return seconds_in_turn(runs, turns, self.clock)

    def row(self, variant: str, params: dict[str, Any], metric: str, unit: str, values: Any) -> None:
        row("runtimes", variant, params | self.params, metric, unit, values, out=self.out)

    def best_product(self, dtype: str) -> float:
        """FLOP/s of the best matrix product in a type, measured once."""
        if dtype not in self.best:
            reached: dict[str, NDArray[np.float64]] = {}
            for side in SIDES:
                a, b = (torch.randn(side, side, dtype=getattr(torch, dtype)) for _ in range(2))
                products: dict[str, Run] = {
                    f"torch.mm {side}": partial(torch.mm, a, b),
                    f"oneDNN {side}": partial(torch.ops.mkldnn._linear_pointwise, a, b, None, "none", [], ""),
                }
                reached |= {name: 2 * side**3 / s for name, s in self.seconds(products, 2 * self.turns).items()}
            name = max(reached, key=lambda name: float(np.median(reached[name])))
            self.row(f"best product: {name}", {"dtype": dtype}, "product", "GFLOP/s", reached[name] / 1e9)
            self.best[dtype] = float(np.median(reached[name]))
        return self.best[dtype]


@torch.inference_mode()
def measure(bench: Bench, name: str, batches: tuple[int, ...], folder: Path) -> None:
    """Rows of a model: time an image of every variant, SMN's ratio to each and to the best, the share of the limit."""
    spec = random_weights(name, folder)
    backbone = load_backbone(spec)
    mask = random_mask(backbone.layout, DENSITY, np.random.default_rng(0), backbone)
    weights = {key: torch.from_numpy(array) for key, array in masked_weights(backbone, mask).items()}
    plain = timm.create_model(name, num_classes=0).eval()
    plain.load_state_dict(weights)
    graph = export(plain, tuple(backbone.preprocess["input_size"]))
    x = torch.randn(max(batches), *backbone.preprocess["input_size"], generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        expected = plain(x)
    flops = counter.get_total_flops() / len(x)
    for dtype, runtimes in RUNTIMES.items():
        if slow_on_cpu(getattr(torch, dtype), x.device):
            continue  # nobody would take this type here
        own = replace(random_weights(name, folder), dtype=dtype)
        engine = Engine(load_backbone(own), slots=1, threads=1, capacity=max(batches))
        engine.prepare(mask)
        model = timm.create_model(name, num_classes=0).eval()
        model.load_state_dict(weights)
        model.to(getattr(torch, dtype))
        for batch in batches:
            images, typed = x[:batch], x[:batch].to(getattr(torch, dtype))
            runs: dict[str, Callable[[], Any]] = {
                SMN: partial(_embed, engine, images, [Segment(str(mask.digest), 0, batch)]),
                PLAIN: partial(model, typed),
            }
            for variant, runtime in runtimes.items():
                runs[variant] = partial(open_model(runtime, graph, dtype=dtype, n_images=batch), images.numpy())
            for variant, run in runs.items():
                _require(f"{name}, {variant}, {dtype}", run(), expected[:batch], TOLERANCE[dtype])
            taken = bench.seconds(runs, max(2, bench.turns * (3 if batch == 1 else 1)))
            report(bench, {"model": name, "dtype": dtype, "batch": batch}, taken, flops * batch, list(runtimes))


def report(
    bench: Bench, params: dict[str, Any], taken: dict[str, NDArray[np.float64]], flops: float, runtimes: list[str]
) -> None:
    """The rows of one batch size."""
    best = min(runtimes, key=lambda name: float(np.median(taken[name])))
    limit = bench.best_product(params["dtype"])
    for variant, seconds in taken.items():
        bench.row(variant, params, "time an image", "ms", seconds * 1e3 / params["batch"])
        bench.row(variant, params, "FLOP/s, over the best product's", "x", flops / seconds / limit)
        if variant != SMN:
            bench.row(variant, params, "images/s, SMN's ratio to it", "x", seconds / taken[SMN])
    bench.row(BEST, params, "images/s, SMN's ratio to it", "x", taken[best] / taken[SMN])
    bench.row(BEST, params, "FLOP/s, over the best product's", "x", flops / taken[best] / limit)
    bench.row("limit", params, "time an image", "ms", [flops / limit * 1e3 / params["batch"]])


def _embed(engine: Engine, images: Tensor, segments: list[Segment]) -> Tensor:
    return engine.embed(images, segments).embeddings


def _require(who: str, found: Any, expected: Tensor, tolerance: float) -> None:
    """Raises RuntimeError where embeddings are not plain timm's."""
    distance = torch.linalg.vector_norm(torch.as_tensor(found).float() - expected) / torch.linalg.vector_norm(expected)
    if not float(distance) <= tolerance:
        raise RuntimeError(f"{who}: {float(distance):.3g} away from plain timm's embeddings")


if __name__ == "__main__":
    main()
