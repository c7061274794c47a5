"""Does a linear map save embedding an index again? recall@10 in the new space with and without it, on test images.

    python -m benchmarks.translations --data SET --mask A.smn --mask B.smn --pair root:A --pair A:B --weights W
        [--fit 800] [--test 1000] [--embeddings DIR] [--out FILE.jsonl]

A pair is FROM:TO; a space is `root` or the stem of a mask's file. Maps are fitted on images of the train split and
measured on images of the test split alone, with the functions of `smn translate`. Every split goes through every mask
once; masks that differ in their map alone share their forwards. `--embeddings` keeps them for the next command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy import ndarray

from benchmarks.rows import row
from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, with_bits
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options
from training.data import open_split
from training.evaluation.controls import strip
from training.features import Cache, sample
from training.progress import count
from training.translate.ridge import NEIGHBOURS, translate

ROOT = "root"
BATCH = 32


def main(
    spec: BackboneSpec,
    data: Annotated[str, typer.Option(help="images with a train and a test split")],
    mask: Annotated[list[Path], typer.Option(help="a mask file; may be repeated")],
    pair: Annotated[list[str], typer.Option(help="FROM:TO, each root or a mask file's stem; may be repeated")],
    fit: Annotated[int, typer.Option(help="most images of the train split that maps are fitted on")] = 800,
    test: Annotated[int, typer.Option(help="most images of the test split: both the queries and the index")] = 1000,
    embeddings: Annotated[Path | None, typer.Option(help="a folder that keeps embeddings")] = None,
    out: Annotated[Path | None, typer.Option(help="append the rows to this file too")] = None,
) -> None:
    """Print the rows."""
    torch.set_num_threads(1)
    files = {path.stem: read_mask(path) for path in mask}
    pairs = [_parse(text, files) for text in pair]
    engine = Engine(load_backbone(as_trained(spec, next(iter(files.values())), mask[0])), slots=1)
    spaces: dict[str, TaskMask | None] = {ROOT: None}
    spaces |= {name: with_bits(task, engine.backbone) for name, task in files.items()}
    used = [name for name in spaces if any(name in both for both in pairs)]
    cache = Cache([embeddings] if embeddings is not None else [])
    seen, held = (
        {name: _embed(engine, spaces[name], images, cache, f"{name}, {split}") for name in used}
        for split, images in (
            ("train", sample(open_split(data, "train"), fit)),
            ("test", sample(open_split(data, "test"), test)),
        )
    )
    for before, after in pairs:
        found = translate(seen[before], seen[after], held[before], held[after])
        params = {
            "data": Path(data).name,
            "from": _tell(before, spaces[before]),
            "to": _tell(after, spaces[after]),
            "fitted on": found.n_fitted,
            "measured on": found.n_held_out,
            "strength": found.strength,
        }
        metric = f"recall@{NEIGHBOURS}"
        row("translate", "nothing", params, metric, "1", [found.recall_untouched], out=out)
        row("translate", "map", params, metric, "1", [found.recall], out=out)


def _parse(text: str, files: dict[str, TaskMask]) -> tuple[str, str]:
    before, _, after = text.partition(":")
    for name in (before, after):
        if name != ROOT and name not in files:
            raise InvalidArgument(f"--pair {text}: {name!r} is not root, nor the stem of a --mask")
    return before, after


def _embed(engine: Engine, task: TaskMask | None, images: ImageSet, cache: Cache, what: str) -> ndarray:
    bare = strip(task) if task is not None else None
    if bare is not None:
        engine.prepare(bare)
    with count(what, len(images.names)) as advance:
        z = cache.embed(engine, bare.digest if bare is not None else None, images, BATCH, advance).z
    if bare is not None:
        engine.release(str(bare.digest))
    return z if task is None or task.affine is None else task.affine.apply(z).astype(np.float32)


def _tell(name: str, task: TaskMask | None) -> str:
    """What a space is made of: OFF weights, and whether there is a map."""
    if task is None:
        return name
    return f"{name} ({task.n_off:,} OFF{', map' if task.affine is not None else ''})"


if __name__ == "__main__":
    typer.run(model_options(main))
