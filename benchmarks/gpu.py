"""What masks cost on a GPU, against what has no masks, in turn. Checks its embeddings first; exit code 2 without CUDA.

    .venv/bin/python -m benchmarks.gpu [--quick] [--model NAME] [--dtype float16] [--out benchmarks/results/gpu.jsonl]
    .venv/bin/python -m benchmarks.gpu --fit      # the constants of smn_core/engine/kernelmask.py, measured here

Questions: swap (theta' of a mask into a slot, against a copy on the device), hot (a mask in a slot through its captured
graph, against plain captured timm), mixed (64 images with 64 masks, against 64 with one, and against one by one with a
swap for each). Weights and masks are random; cost depends on sizes and densities alone. Times are wall time from the
call to the device's being done; those of `swap` are the device's own, from a captured graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from numpy import ndarray
from torch import Tensor, nn

from benchmarks.fit_costs import fit_kernels
from benchmarks.masks import random_mask
from benchmarks.rows import row
from benchmarks.turns import seconds_in_turn
from smn_core.backbone import DTYPES, Backbone, wrap
from smn_core.engine import Engine, Segment
from smn_core.engine.apply import TorchApplier, apply_slowly
from smn_core.engine.device.graphs import cuda_capture
from smn_core.mask import TaskMask
from smn_core.spec import BackboneSpec

# One density at which masks of ViTs are read from lists, and one at which from bits; a ResNet-50's masks are swapped.
MODELS = {"vit_tiny_patch16_224": (0.9995, 0.95), "vit_base_patch32_224": (0.9995, 0.95), "resnet50": (0.95,)}
IMAGES, SLOTS = 64, 16
# Cosine, and relative distance in float32, to plain timm in float32 with weights masked by hand.
COSINE, DISTANCE = 0.999, 1e-3


class Bench:
    """A model on a device with prepared masks, and where its rows go."""

    def __init__(
        self,
        name: str,
        density: float,
        device: torch.device,
        dtype: torch.dtype,
        turns: int,
        out: Path | None,
        n_masks: int = IMAGES,
        args: dict[str, Any] | None = None,
        image_size: int | None = None,
    ) -> None:
        self.name, self.device, self.dtype, self.turns, self.out = name, device, dtype, turns, out
        self.spec = BackboneSpec(name, args=args or {}, image_size=image_size)
        torch.manual_seed(0)
        self.weights = timm.create_model(name, num_classes=0, **self.spec.args).state_dict()
        self.engine = Engine(self.backbone(device, dtype), slots=SLOTS, capacity=n_masks)
        rng, layout = np.random.default_rng(0), self.engine.backbone.layout
        self.masks = [random_mask(layout, density, rng, self.engine.backbone) for _ in range(n_masks)]
        for mask in self.masks:
            self.engine.prepare(mask)
        self.digests = [str(mask.digest) for mask in self.masks]
        size = self.engine.backbone.preprocess["input_size"]
        self.x = torch.randn(n_masks, *size).to(device)
        self.params = {"model": name, "density": density, "dtype": str(dtype).removeprefix("torch.")}

    def backbone(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """A model of its own with the same weights."""
        model = timm.create_model(self.name, num_classes=0, **self.spec.args)
        model.load_state_dict(self.weights)
        return wrap(model, self.name, self.spec, device=device, dtype=dtype)

    def seconds(self, runs: dict[str, Callable[[], object]]) -> dict[str, ndarray]:
        """Seconds of every run until the device is done, in turn; three turns warm up, record and replay."""
        return seconds_in_turn(runs, self.turns, warm_up=3, wait=self.wait)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def row(self, bench: str, variant: str, params: dict[str, Any], metric: str, unit: str, values: Any) -> None:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        row(bench, variant, {**self.params, **params}, metric, unit, values, out=self.out, device=device)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="fewer turns")] = False,
    model: Annotated[str | None, typer.Option(help="one model")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float16",
    fitted: Annotated[bool, typer.Option("--fit", help="measure the constants of the kernels' costs instead")] = False,
    out: Annotated[Path | None, typer.Option(help="append the rows to this file too")] = None,
) -> None:
    """Print the rows of every question."""
    if not torch.cuda.is_available():
        typer.echo("benchmarks.gpu: torch sees no CUDA device here: run it on a machine with a GPU", err=True)
        raise typer.Exit(2)
    if dtype not in DTYPES or (model is not None and model not in MODELS):
        typer.echo(f"benchmarks.gpu: --dtype is one of {', '.join(DTYPES)}, --model of {', '.join(MODELS)}", err=True)
        raise typer.Exit(2)
    device, turns = torch.device("cuda", torch.cuda.current_device()), 20 if quick else 100
    if fitted:
        print(fit_kernels(device, DTYPES[dtype], turns, out))
        return
    for name in [model] if model else MODELS:
        for density in MODELS[name]:
            bench = Bench(name, density, device, DTYPES[dtype], turns, out)
            if fault := check(bench):
                typer.echo(f"benchmarks.gpu: {name} at density {density}: {fault}", err=True)
                raise typer.Exit(1)
            for question in (swap, hot, mixed):
                question(bench)


@torch.inference_mode()
def check(bench: Bench) -> str:
    """What is wrong with the embeddings of masks alone and mixed, run, recorded and replayed; empty if nothing."""
    plain, wrong = bench.backbone(bench.device, torch.float32).model, []
    n = min(8, len(bench.masks))
    expected = torch.cat([by_hand(plain, m, bench.weights, bench.x[i : i + 1]) for i, m in enumerate(bench.masks[:n])])
    for turn in ("run", "recorded", "replayed"):
        together = bench.engine.embed(bench.x[:n], [Segment(d, i, i + 1) for i, d in enumerate(bench.digests[:n])])
        alone = [
            bench.engine.embed(bench.x[i : i + 1], [Segment(d, 0, 1)]).embeddings
            for i, d in enumerate(bench.digests[:n])
        ]
        for way, found in (("mixed", together.embeddings), ("alone", torch.cat(alone))):
            cosine = float(torch.cosine_similarity(found, expected).min())
            distance = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
            if not cosine >= COSINE or (bench.dtype == torch.float32 and not distance <= DISTANCE):
                wrong.append(f"{way}, {turn}: cosine {cosine:.5f}, relative distance {distance:.2g} to plain timm")
    return "; ".join(wrong)


def by_hand(model: nn.Module, mask: TaskMask, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Embeddings [n,d] of a plain float32 model, on the CPU, its weights masked by the reference."""
    theta = np.zeros(mask.layout.n_elements, np.float32)
    for tensor in mask.layout:
        theta[tensor.elements] = weights[tensor.name].flatten().numpy()
    flat = torch.from_numpy(apply_slowly(theta, mask))
    model.load_state_dict(weights | {t.name: flat[t.elements].view(t.shape) for t in mask.layout})
    return model(x).cpu()


@torch.inference_mode()
def swap(bench: Bench) -> None:
    """Writing a slot against a copy of the same bytes: milliseconds of the device, and the ratio of each turn."""
    from triton.testing import do_bench_cudagraph

    theta = bench.engine._theta
    mask, other = bench.engine._prepared[bench.digests[0]].compact, torch.empty_like(theta.flat)
    runs: dict[str, Callable[[], object]] = {
        "copy": lambda: other.copy_(theta.flat),
        "slot": lambda: theta.applier.write(mask, other),
        "slot, torch": partial(TorchApplier(theta.flat, theta.layout).write, mask, other),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(max(3, bench.turns // 10)):
        for name, run in runs.items():
            taken[name].append(float(do_bench_cudagraph(run, return_mode="median")))
    params = {"bytes": theta.flat.nbytes, "kernels": theta.kernels is not None}
    for name in runs:
        bench.row("gpu swap", name, params, "time", "ms", taken[name])
        if name != "copy":
            bench.row("gpu swap", name, params, "ratio to copy", "x", np.array(taken[name]) / np.array(taken["copy"]))


@torch.inference_mode()
def hot(bench: Bench) -> None:
    """A mask that is in its slot, against a plain model of its own, both captured, images on the device already."""
    plain, mask = bench.backbone(bench.device, bench.dtype).model, bench.engine._prepared[bench.digests[0]]
    engine = bench.engine
    for n in (1, 8, 32, 64):
        x = bench.x[:n].to(bench.dtype)
        images = x.clone()
        replay = cuda_capture(bench.device)(partial(plain, images))

        def run_plain(images: Tensor = images, x: Tensor = x, replay: Callable[[], Tensor] = replay) -> None:
            images.copy_(x)
            replay()

        def run_engine(x: Tensor = x) -> None:
            engine._wardrobe.bring(mask)
            engine._run_one(mask, x)

        taken = bench.seconds({"plain": run_plain, "engine": run_engine})
        params = {"batch": n, "graphs": engine._graphs is not None and engine._graphs.size_for(x) is not None}
        bench.row("gpu hot", "engine", params, "ratio to plain captured timm", "x", taken["engine"] / taken["plain"])
        bench.row("gpu hot", "plain", params, "time", "ms", taken["plain"] * 1e3)


def mixed(bench: Bench) -> None:
    """As many images as masks in one batch, against as many with one mask, and against one after the other, swapped."""
    engine, n = bench.engine, len(bench.digests)
    segments = [Segment(digest, i, i + 1) for i, digest in enumerate(bench.digests)]

    def one_by_one() -> None:
        for i, digest in enumerate(bench.digests):
            engine.embed(bench.x[i : i + 1], [Segment(digest, 0, 1)])

    runs: dict[str, Callable[[], object]] = {
        "one mask": partial(engine.embed, bench.x, [Segment(bench.digests[0], 0, n)]),
        "mixed": partial(engine.embed, bench.x, segments),
        "one by one": one_by_one,
    }
    taken = bench.seconds(runs)
    params = {"images": n, "masks": n, "slots": SLOTS, "one forward": engine._mixes and engine._mixed.all_linear}
    bench.row("gpu mixed", "mixed", params, "images/s, ratio to one mask", "x", taken["one mask"] / taken["mixed"])
    bench.row("gpu mixed", "mixed", params, "images/s, ratio to one by one", "x", taken["one by one"] / taken["mixed"])
    for name, seconds in taken.items():
        bench.row("gpu mixed", name, params, "rate", "images/s", n / seconds)


if __name__ == "__main__":
    typer.run(main)
