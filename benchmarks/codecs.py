"""What a mask's bits take under each codec, and what it costs to write and to read them.

    python -m benchmarks.codecs                                          # random masks of a ResNet-50
    python -m benchmarks.codecs --mask A.smn,B.smn --weights W.safetensors     # masks that were learned
    python -m benchmarks.codecs --mask A.smn,B.smn --parent ROOT.smn --weights W.safetensors    # against a parent too
    python -m benchmarks.codecs --damage 100000                        # damaged files of a small model, with a parent

Seconds are the processor's, of one thread. A random mask's bits have nothing to do with its weights: what they cost is
the codec's own time, and how near it comes to their entropy. Of learned masks whole files are measured too: as in zstd,
with codec context, and with rounded statistics. A damaged file is refused or is another mask; nothing else may happen.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import timm
import torch
import typer
from numpy import ndarray

from benchmarks.masks import random_mask
from benchmarks.rows import row
from smn_core import codec
from smn_core.backbone import layout_for, load_backbone, model_json, wrap
from smn_core.contextual.classes import Theta
from smn_core.errors import SMNError
from smn_core.mask import TaskMask
from smn_core.maskfile import parse_mask, read_mask, serialise_mask, with_bits
from smn_core.spec import BackboneSpec
from smn_core.tensorfile import parse_tensors, serialise_with_content
from smn_core.verbs.options import as_trained, model_options
from smn_core.verbs.repack import with_rounded_state

T = TypeVar("T")
MODEL = "resnet50"
DENSITIES = (0.95, 0.9995)
TURNS = 5
SMALL = BackboneSpec("resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8})
"""9,400 weights, with running statistics: decoded in a millisecond."""
SAID_EVERY = 50_000
"""Damaged files between two lines of progress."""

app = typer.Typer(add_completion=False)


@app.command()
@model_options
def main(
    spec: BackboneSpec,
    mask: Annotated[str, typer.Option(metavar="FILE,...", help="Learned masks of one backbone.")] = "",
    parent: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Code the learned masks against this too.")
    ] = None,
    damage: Annotated[int, typer.Option(min=0, help="Read so many damaged files instead.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Damages differ with it: a long run may be several.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="One turn.")] = False,
    out: Annotated[Path | None, typer.Option(help="Add the rows to this file.")] = None,
) -> None:
    turns = 1 if quick else TURNS
    if damage:
        _damage(damage, seed, out)
        return
    if mask:
        _files(spec, [Path(name) for name in mask.split(",")], parent, out)
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


def _files(spec: BackboneSpec, files: list[Path], parent: Path | None, out: Path | None) -> None:
    """Whole files: as they are, in codec context, with rounded statistics, against a parent; and 32-bit weights."""
    backbone = load_backbone(as_trained(spec, read_mask(files[0]), files[0]))
    against = read_mask(parent, backbone.layout) if parent is not None else None
    n_weights_bytes, ratios = sum(4 * p.numel() for p in backbone.model.parameters()), []
    for file in files:
        task = with_bits(read_mask(file, backbone.layout), backbone)
        params = {"kind": "file", "model": backbone.architecture, "mask": file.stem, "off": task.n_off}
        params |= {"state": sum(values.nbytes for values in task.state.values())}
        sizes = {"zstd": serialise_mask(task, "zstd"), codec.CONTEXT: serialise_mask(task, codec.CONTEXT, backbone)}
        if task.state:
            sizes["context, float16 state"] = serialise_mask(with_rounded_state(task), codec.CONTEXT, backbone)
        for name, data in sizes.items():
            row("codecs", name, params, "bytes of the file", "B", [len(data)], out=out)
            row(
                "codecs",
                name,
                params,
                "bytes of the file, ratio to zstd",
                "x",
                [len(data) / len(sizes["zstd"])],
                out=out,
            )
            smaller = n_weights_bytes / len(data)
            row("codecs", name, params, "32-bit weights over the file", "x", [smaller], out=out)
        if against is not None:
            with_parent = serialise_mask(task, codec.CONTEXT, backbone, against)
            found, alone = (_bits_bytes(data) for data in (with_parent, sizes[codec.CONTEXT]))
            params |= {"parent_off": with_bits(against, backbone).n_off}
            row("codecs", "context, parent", params, "bytes of the bits", "B", [found], out=out)
            row("codecs", "context, parent", params, "bytes, ratio to coding it alone", "x", [found / alone], out=out)
            ratios.append(found / alone)
    if ratios:
        params = {"kind": "children", "model": backbone.architecture, "masks": len(ratios)}
        row("codecs", "context, parent", params, "bytes of each of many, ratio to alone", "x", ratios, out=out)


def _bits_bytes(data: bytes) -> int:
    return parse_tensors(data).tensors[codec.WHOLE_TENSOR].nbytes


def _damage(n: int, seed: int, out: Path | None) -> None:
    """Read n files whose coded tensors, or whole bytes, were changed: refused, or another mask, and nothing else."""
    torch.manual_seed(0)
    model = timm.create_model(SMALL.name, pretrained=False, num_classes=0, **SMALL.args)
    backbone, rng = wrap(model, SMALL.name, SMALL), np.random.default_rng(seed)
    state = {name: rng.random(shape, np.float32) for name, shape in backbone.layout.buffers.items()}
    drawn = (random_mask(backbone.layout, density, rng) for density in (0.9, 0.95))
    parent, task = (replace(m, model=backbone.model_json, fingerprint=backbone.fingerprint, state=state) for m in drawn)
    there = serialise_mask(parent, codec.CONTEXT, backbone)
    data = serialise_mask(task, codec.CONTEXT, backbone, parse_mask(there, backbone.layout))
    whole, counts, longest_s = parse_tensors(data), {"refused": 0, "another mask": 0}, 0.0
    for i in range(n):
        if i % SAID_EVERY == 0:
            print(f"{i:,} of {n:,} files: {counts}", file=sys.stderr, flush=True)
        if rng.random() < 0.1:
            damaged = _changed(data, rng)
        else:  # the checksum is that of the damaged tensors, or else nothing would be decoded
            tensors = dict(whole.tensors)
            name = str(rng.choice(sorted(tensors)))
            tensors[name] = np.frombuffer(_changed(tensors[name].tobytes(), rng), np.uint8)
            metadata = {key: value for key, value in whole.metadata.items() if key != "content"}
            damaged = serialise_with_content(tensors, metadata)
        began = time.thread_time()
        try:
            with_bits(parse_mask(damaged, backbone.layout, lambda _: there), backbone)
            counts["another mask"] += 1
        except SMNError:
            counts["refused"] += 1
        longest_s = max(longest_s, time.thread_time() - began)
    params = {"kind": "damaged", "model": SMALL.name, "files": n, "seed": seed, "parent": True, "bytes": len(data)}
    for outcome, count in counts.items():
        row("codecs", codec.CONTEXT, params, f"damaged files: {outcome}", "", [count], out=out)
    row("codecs", codec.CONTEXT, params, "damaged files: the longest read", "s", [longest_s], out=out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row("codecs", codec.CONTEXT, params, "damaged files: peak memory of the process", "B", [peak], out=out)


def _changed(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with a few bits flipped, a part overwritten, cut off, or more behind."""
    found = bytearray(data)
    how, place = rng.integers(4), int(rng.integers(len(found)))
    if how == 0:
        for bit in rng.integers(8 * len(found), size=rng.integers(1, 9)):
            found[bit // 8] ^= 1 << (bit % 8)
    elif how == 1:
        noise = rng.bytes(int(rng.integers(1, 65)))
        found[place : place + len(noise)] = noise
    elif how == 2:
        del found[place:]
    else:
        found += rng.bytes(int(rng.integers(1, 65)))
    return bytes(found)


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
