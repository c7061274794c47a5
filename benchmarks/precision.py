"""What half precision does to embeddings and kNN, against float32, on real images, weights and masks.

    .venv/bin/python -m benchmarks.precision --data DATA --weights FILE --mask FILE [--dtype bfloat16] [--images 200]

Every image goes through the untouched backbone, through the mask alone, and through both in one mixed batch, in float32
and in the other type: the cosine of the two embeddings, and how many points kNN (each image by all others) differs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy import ndarray

from benchmarks.rows import row
from smn_core.backbone import load_backbone
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.offline import make_loader
from smn_core.verbs.options import numbers
from training.data import open_split
from training.evaluation.probes import knn

BATCH = 10


def main(
    data: Annotated[str, typer.Option(help="a labelled set, as smn evaluate takes it; its test split is used")],
    weights: Annotated[Path, typer.Option(help="the backbone's weights")],
    mask: Annotated[Path, typer.Option(help="a mask of it")],
    backbone: Annotated[str, typer.Option(help="timm model")] = "vit_tiny_patch16_224",
    mean: Annotated[str, typer.Option(help="pixel mean")] = "0.5",
    std: Annotated[str, typer.Option(help="pixel deviation")] = "0.5",
    image_size: Annotated[int | None, typer.Option(help="side of the input in px")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16")] = "bfloat16",
    images: Annotated[int, typer.Option(help="how many images, evenly from the split")] = 200,
    out: Annotated[Path | None, typer.Option(help="append the rows to this file too")] = None,
) -> None:
    """Print the rows."""
    torch.set_num_threads(1)
    spec = BackboneSpec(
        backbone, weights, image_size=image_size, mean=numbers("mean", mean), std=numbers("std", std), device="cpu"
    )
    full, half = Engine(load_backbone(spec), slots=1), Engine(load_backbone(replace(spec, dtype=dtype)), slots=1)
    task, split = read_mask(mask, full.backbone.layout), open_split(data, "test")
    if split.labels is None or task.digest is None:
        raise InvalidArgument(f"{data} has no labels")
    chosen = np.linspace(0, len(split.names) - 1, min(images, len(split.names))).astype(int)
    load, labels = make_loader(split, full), np.asarray(split.labels, np.int64)[chosen]
    x = torch.stack([load(int(i)) for i in chosen])
    for engine in (full, half):
        engine.prepare(task)
    params = {
        "model": backbone,
        "dtype": dtype,
        "data": Path(data).name,
        "images": len(x),
        "px": x.shape[-1],
        "density": round(task.density, 6),
        "patched": half._prepared[task.digest].patched,
    }
    wanted = {None: _embed(full, x, (None,))[None], task.digest: _embed(full, x, (task.digest,))[task.digest]}
    ways: dict[str, tuple[str | None, ...]] = {"frozen": (None,), "mask": (task.digest,), "mixed": (None, task.digest)}
    for way, digests in ways.items():
        for digest, z in _embed(half, x, digests).items():
            variant = way if len(digests) == 1 else f"{way}, {'mask' if digest else 'frozen'}"
            cosine = (_unit(z) * _unit(wanted[digest])).sum(1)
            row("precision", variant, params, "cosine to float32", "1", cosine, out=out)
            row("precision", variant, params, "least cosine to float32", "1", [cosine.min()], out=out)
            points = 100 * (_accuracy(z, labels) - _accuracy(wanted[digest], labels))
            row("precision", variant, params, "kNN, difference to float32", "points", [points], out=out)
            row("precision", variant, params, "kNN", "%", [100 * _accuracy(z, labels)], out=out)


def _embed(engine: Engine, x: torch.Tensor, digests: tuple[str | None, ...]) -> dict[str | None, ndarray]:
    """Embeddings of all images through every mask, all masks in each batch."""
    found: dict[str | None, list[ndarray]] = {digest: [] for digest in digests}
    for images in x.split(BATCH):
        n = len(images)
        segments = [Segment(digest, i * n, (i + 1) * n) for i, digest in enumerate(digests)]
        z = engine.embed(images.repeat(len(digests), 1, 1, 1), segments).embeddings.numpy()
        for i, digest in enumerate(digests):
            found[digest].append(z[i * n : (i + 1) * n])
    return {digest: np.concatenate(parts) for digest, parts in found.items()}


def _unit(z: ndarray) -> ndarray:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def _accuracy(z: ndarray, labels: ndarray) -> float:
    """Each image by all others."""
    others = [np.delete(np.arange(len(z)), i) for i in range(len(z))]
    return float(np.mean([knn(z[o], labels[o], z[i : i + 1])[0] == labels[i] for i, o in enumerate(others)]))


if __name__ == "__main__":
    typer.run(main)
