"""What a mask's bits take under each codec, and what it costs to write and to read them.

    python -m benchmarks.codecs                                          # random masks of a ResNet-50
    python -m benchmarks.codecs --mask A.smn,B.smn --weights W.safetensors     # masks that were learned

Seconds are the processor's, of one thread. A random mask's bits have nothing to do with its weights: what they cost is
the codec's own time, and how near it comes to their entropy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from numpy import ndarray

from benchmarks.masks import random_mask
from benchmarks.rows import row
from smn_core import codec
from smn_core.backbone import layout_for, load_backbone, model_json
from smn_core.contextual.classes import Theta
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, with_bits
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options

T = TypeVar("T")
MODEL = "resnet50"
DENSITIES = (0.95, 0.9995)
TURNS = 5

app = typer.Typer(add_completion=False)


@app.command()
@model_options
def main(
    spec: BackboneSpec,
    mask: Annotated[str, typer.Option(metavar="FILE,...", help="Learned masks of one backbone.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="One turn.")] = False,
    out: Annotated[Path | None, typer.Option(help="Add the rows to this file.")] = None,
) -> None:
    turns = 1 if quick else TURNS
    found = _learned(spec, [Path(name) for name in mask.split(",")]) if mask else _random()
    ratios, model = [], MODEL
    for params, task, theta in found:
        ratios.append(_measure(params, task, theta, turns, out))
        model = params["model"]
    if mask:
        params = {"kind": "learned", "model": model, "masks": len(ratios)}
        row("codecs", codec.CONTEXT, params, "bytes of each of many, ratio to zstd", "x", ratios, out=out)


def _measure(params: dict[str, Any], task: TaskMask, theta: Theta, turns: int, out: Path | None) -> float:
    """Returns the bytes of codec context over those of zstd."""
    sizes = {}
    for name in codec.CODECS:
        tensors, encode_s = _timed(partial(codec.encode, task.packed, task.layout, name, theta), 1)
        sizes[name] = sum(array.nbytes for array in tensors.values())
        _, decode_s = _timed(partial(codec.decode, tensors, task.layout, name, theta), turns)
        for metric, unit, values in (
            ("bytes of the bits", "B", [sizes[name]]),
            ("encode", "s", encode_s),
            ("decode", "s", decode_s),
        ):
            row("codecs", name, params, metric, unit, values, out=out)
    for metric, against in (("bytes, ratio to zstd", sizes["zstd"]), ("bytes, ratio to entropy", _entropy_bytes(task))):
        if against:
            row("codecs", codec.CONTEXT, params, metric, "x", [sizes[codec.CONTEXT] / against], out=out)
    return sizes[codec.CONTEXT] / sizes["zstd"]


Measured = tuple[dict[str, Any], TaskMask, Theta]


def _random() -> Iterator[Measured]:
    layout, rng = layout_for(model_json(MODEL, {})), np.random.default_rng(0)
    weights = {t.name: torch.from_numpy(rng.standard_normal(t.shape, np.float32)) for t in layout}
    theta = Theta(weights, layout, rounded=False)
    for density in DENSITIES:
        params = {"kind": "random", "model": MODEL, "density": density, "weights": layout.n_weights}
        yield params, random_mask(layout, density, rng), theta


def _learned(spec: BackboneSpec, files: list[Path]) -> Iterator[Measured]:
    backbone = load_backbone(as_trained(spec, read_mask(files[0]), files[0]))
    assert backbone.theta is not None
    for file in files:
        task = with_bits(read_mask(file, backbone.layout), backbone)
        params = {"kind": "learned", "model": backbone.architecture, "mask": file.stem, "off": task.n_off}
        yield params, task, backbone.theta


def _entropy_bytes(mask: TaskMask) -> float:
    """Of bits that are drawn with each tensor's own density."""
    n = np.array([tensor.n_weights for tensor in mask.layout])
    on = mask.on_counts / n
    return float(n @ (_surprise(on) + _surprise(1 - on))) / 8


def _surprise(p: ndarray) -> ndarray:
    return -p * np.log2(np.where(p > 0, p, 1))


def _timed(run: Callable[[], T], turns: int) -> tuple[T, list[float]]:
    """What it gives, and the seconds of each turn; one before them compiles."""
    result, taken = run(), []
    for _ in range(turns):
        began = time.thread_time()
        result = run()
        taken.append(time.thread_time() - began)
    return result, taken


if __name__ == "__main__":
    app()
