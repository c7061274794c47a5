"""Does a cascade bring anything over one mask with a map, at equal bytes?

    python -m benchmarks.cascade_or_map --data SET --weights W --cascade DIR [--cascade OTHER]
        [--fusion pca:64:int3 ...] [--test] [--out FILE]

The root of the first cascade with the map that `smn adapt` would give it, and every cascade in both modes and in all
fusions asked for; beside them the root and the frozen backbone, without maps and with. Maps and fusions are fitted on
the train split without labels. Bytes are those of whole files in codec `context` without texts, experts coded against
their root. Scores are of three folds of the train split, to choose by; with --test of the test split against the train
split. Changes are against the root with its map: paired by image for kNN and probe, over 20 draws for five labels. One
JSON line a space.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.maps import SEED, Right, score, score_folds
from benchmarks.scores import mapped, rounded, tell
from smn_core import codec
from smn_core.backbone import load_backbone
from smn_core.cascade.file import CascadeFolder, open_folder
from smn_core.engine import Engine
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import serialise_mask, with_bits
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options
from training.adapt.ending import MAP_PRECISION
from training.cascade.fusion import FusionChoice, parse_fusion
from training.data import name_data, open_split
from training.evaluation.compare import compare as compare_cascade
from training.evaluation.controls import make_all_on
from training.evaluation.paired import compare
from training.features import Features, embed, sample
from training.labels import renumber_classes
from training.maps import fit_map

FROZEN, MAPPED, ROOT, AGAINST = "frozen", "frozen + map", "mask", "mask + map"
BATCH = 32
Found = tuple[str, int, Features, Features]
"""A space: its name, the bytes that it takes, the embeddings of the bank and of the images asked."""


def main(
    spec: BackboneSpec,
    data: Annotated[str, typer.Option(help="labelled images with a train and a test split")],
    cascade: Annotated[list[Path], typer.Option(help="what `smn cascade` wrote; may be repeated, of one root")],
    fusion: Annotated[list[str] | None, typer.Option(help="another fusion; may be repeated")] = None,
    most: Annotated[int, typer.Option(help="images of each split")] = 1000,
    test: Annotated[bool, typer.Option("--test", help="score on the test split")] = False,
    out: Annotated[Path | None, typer.Option(help="append the lines to this file")] = None,
) -> None:
    """Print a line for every space."""
    torch.set_num_threads(1)
    engine = Engine(load_backbone(as_trained(spec, None)), slots=1)
    whole = open_split(data, "train")
    train = sample(whole, most, SEED)
    asked = sample(renumber_classes(whole, open_split(data, "test")), most, SEED)
    against: Right | None = None
    for name, n_bytes, bank, other in spaces(engine, cascade, [parse_fusion(f) for f in fusion or []], train, asked):
        assert bank.labels is not None
        assert other.labels is not None
        right = score(bank.z, bank.labels, other.z, other.labels) if test else score_folds(bank.z, bank.labels)
        against = against or right
        changes = {kind: rounded(compare(against[kind], right[kind])) for kind in right}
        facts = {"data": name_data(data), "split": "test" if test else "train", "space": name, "bytes": n_bytes}
        tell(facts | changes, out)


def spaces(
    engine: Engine, folders: list[Path], fusions: list[FusionChoice], train: ImageSet, test: ImageSet
) -> Iterator[Found]:
    """What is compared, `mask + map` first, since all others are held against it."""
    cascades = [open_folder(folder) for folder in folders]
    root = with_bits(cascades[0].masks()[0], engine.backbone)

    kept: dict[tuple[str | None, bool], Features] = {}  # cascades share a root

    def seen(digest: str | None, images: ImageSet) -> Features:
        key = digest, images is train
        if key not in kept:
            kept[key] = embed(engine, digest, images, BATCH)
        return kept[key]

    engine.prepare(root)
    bank, asked = seen(root.digest, train), seen(root.digest, test)
    affine = fit_map(engine, root.digest, train, precision=MAP_PRECISION)
    yield AGAINST, bytes_of(engine, replace(root, affine=affine)), mapped(bank, affine), mapped(asked, affine)
    yield ROOT, bytes_of(engine, root), bank, asked
    engine.release(str(root.digest))
    bank, asked = seen(None, train), seen(None, test)
    affine = fit_map(engine, None, train, precision=MAP_PRECISION)
    yield FROZEN, 0, bank, asked
    n_bytes = bytes_of(engine, make_all_on(engine.backbone, affine))
    yield MAPPED, n_bytes, mapped(bank, affine), mapped(asked, affine)

    for folder, found in zip(folders, cascades, strict=True):
        saved_of_root, saved = saved_bytes(engine, found)
        for facts, bank, other in compare_cascade(engine, folder.name, found, fusions, seen, train, test):
            assert other is not None
            label = facts["name"].removeprefix(f"{folder.name}: ")
            if label != "root":
                less = saved_of_root if label.startswith("root") else saved
                yield facts["name"], facts["bytes"]["total"] - less, bank, other


def bytes_of(engine: Engine, mask: TaskMask, parent: TaskMask | None = None) -> int:
    """Of the mask's whole file in codec `context`, without texts."""
    return len(serialise_mask(replace(mask, metadata={}), codec.CONTEXT, engine.backbone, parent))


def saved_bytes(engine: Engine, found: CascadeFolder) -> tuple[int, int]:
    """How much shorter codec `context` makes the root's file, and all files, each expert's against the root."""
    root, *experts = (with_bits(mask, engine.backbone) for mask in found.masks())
    saved = [file.stat().st_size for file in found.files]
    saved[0] -= bytes_of(engine, root)
    return saved[0], sum(saved) - sum(bytes_of(engine, mask, root) for mask in experts)


if __name__ == "__main__":
    typer.run(model_options(main))
