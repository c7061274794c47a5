"""What the forms of a model's layers bring: a hot mask, and every form alone, against plain timm, in turn.

    .venv/bin/python -m benchmarks.forwards [--quick] [--model NAME] [--dtype bfloat16] [--out FILE]

Weights are random; cost does not depend on them. Times are one thread's processor time, or wall time with `--wall`. The
rows `product` are the limit: what a product reaches here, in GFLOP/s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
import typer
from torch import nn

from benchmarks.masks import random_mask
from benchmarks.rows import row
from benchmarks.turns import CLOCKS, clock_name, seconds_in_turn
from smn_core.backbone import Backbone, wrap
from smn_core.engine import Engine, Segment
from smn_core.engine.forwards.choice import choose_forms
from smn_core.engine.forwards.forms import CHOICES, Forms, layers_of
from smn_core.engine.forwards.linear import has_onednn, linear
from smn_core.spec import BackboneSpec
from smn_core.verbs.heap import keep_freed_memory

# A density at which real masks of the model take slots, and one at which they are patches (docs/results.md).
MODELS = {"vit_tiny_patch16_224": (0.93, 0.9995), "vit_base_patch32_224": (0.9995,), "resnet50": (0.93, 0.99)}
BATCHES = (1, 8, 32)
# Rows, inputs, outputs: layers of a ViT-Tiny and a ViT-B/32 with eight images.
PRODUCTS = ((1576, 192, 768), (400, 768, 3072))


def main(
    quick: Annotated[bool, typer.Option("--quick", help="fewer turns, no batch of 32")] = False,
    model: Annotated[str | None, typer.Option(help="one model")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    wall: Annotated[bool, typer.Option("--wall", help="wall time instead of processor time")] = False,
    threads: Annotated[int, typer.Option(help="torch's threads; more than one are timed by the wall")] = 1,
    out: Annotated[Path | None, typer.Option(help="append the rows to this file too")] = None,
) -> None:
    """Print the rows of one model or all."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the command smn does
    kept = {"threads": threads, "clock": clock_name(wall, threads), "dtype": dtype}
    turns = 5 if quick else 9
    measure(products(getattr(torch, dtype)), turns, kept | {"unit": "GFLOP/s"}, out)
    for name in [model] if model else MODELS:
        for batch in BATCHES[: 2 if quick else 3]:
            runs = forwards(name, getattr(torch, dtype), batch)
            measure(runs, max(3, turns // (1 + batch // 16)), kept | {"model": name, "batch": batch}, out)


def measure(runs: dict[str, Callable[[], object]], turns: int, params: Mapping[str, object], out: Path | None) -> None:
    """Time the runs in turn after one that warms up; print a ratio to the first, or work done, of each."""
    taken = seconds_in_turn(runs, turns, CLOCKS[str(params["clock"])])
    unit = params.get("unit")
    first = next(iter(taken.values()))
    for name, seconds in taken.items():
        if unit is not None:
            row("product", name, params, "speed", str(unit), float(name.split()[-1]) / seconds, out=out)
            continue
        row("forward", name, params, "images/s, ratio to plain timm", "x", first / seconds, out=out)
        batch = params["batch"]
        assert isinstance(batch, int)
        row("forward", name, params, "time an image", "ms", seconds * 1e3 / batch, out=out)


def products(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Products by torch and by oneDNN; the last word of a name are the GFLOP that one does."""
    runs: dict[str, Callable[[], object]] = {}
    for rows, n_in, n_out in PRODUCTS:
        x, weight = torch.randn(rows, n_in).to(dtype), torch.randn(n_out, n_in).to(dtype)
        gflop = 2 * rows * n_in * n_out / 1e9
        runs[f"torch {rows} x {n_in} x {n_out} {gflop:.4f}"] = partial(nn.functional.linear, x, weight)
        if has_onednn():
            runs[f"onednn {rows} x {n_in} x {n_out} {gflop:.4f}"] = partial(linear, x, weight)
    return runs


def forwards(name: str, dtype: torch.dtype, batch: int) -> dict[str, Callable[[], object]]:
    """Plain timm; the model in every form that is not timm's; and hot masks in the engine, which has chosen."""
    plain = timm.create_model(name, num_classes=0).eval()
    backbone = _wrap(plain, name, dtype)
    x = torch.randn(batch, *backbone.preprocess["input_size"]).to(dtype)
    runs: dict[str, Callable[[], object]] = {"plain timm": torch.inference_mode()(partial(backbone.model, x))}
    for kind, values in CHOICES.items():
        for value in values[1:]:
            other = _wrap(copy.deepcopy(plain), name, dtype)
            layers, forms = layers_of(other), Forms().but(kind, value)
            if layers.offers(forms):
                layers.run_as(forms, folded=True)
                runs[f"{kind}: {value}"] = torch.inference_mode()(partial(other.model, x))
    for density in MODELS.get(name, (0.9995,)):
        other = _wrap(copy.deepcopy(plain), name, dtype)
        engine = Engine(other, slots=1, threads=1, forms=choose_forms(_wrap(copy.deepcopy(plain), name, dtype)))
        mask = random_mask(other.layout, density, np.random.default_rng(0), other)
        engine.prepare(mask)
        runs[f"hot mask of density {density}"] = partial(engine.embed, x.float(), [Segment(mask.digest, 0, batch)])
    return runs


def _wrap(model: nn.Module, name: str, dtype: torch.dtype) -> Backbone:
    return wrap(copy.deepcopy(model), name, BackboneSpec(name), dtype=dtype)


if __name__ == "__main__":
    typer.run(main)
