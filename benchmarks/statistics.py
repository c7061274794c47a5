"""What bring a target's statistics, the map within images and a mask, alone and together, where BatchNorm is alive?

    python -m benchmarks.statistics --data SET --backbone NAME --weights W --work DIR \
        [--mask living=A.smn --mask still=B.smn] [--share .5] [--test] [--out FILE]

Statistics are those of whole training images, without a mask: AdaBN. A mask is taken with the backbone's statistics,
with those of whole training images under the mask, and with --as-run with those that its run left in the file; each of
these with a map and without. Scores: kNN by folds of the training split, to choose by; with --test kNN, linear probe,
and the probe with five labels a class (five draws) on the test split. The controls are the frozen backbone, statistics,
map, and statistics with a map: what needs no mask. The best of them by kNN on the folds is the control of every mask.
Changes are paired image by image, with their standard errors over images. Every space is written to --work as the file
that a server would take, and its bytes are counted; a file that is there already is taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float64
from numpy import ndarray
from sklearn.model_selection import StratifiedKFold

from benchmarks.scores import score_few
from smn_core.backbone import Backbone, load_backbone
from smn_core.engine import Engine
from smn_core.engine.forwards.forms import Forms
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, write_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import model_options
from training.data import Subset, open_split
from training.evaluation import probes
from training.evaluation.controls import make_all_on
from training.evaluation.paired import compare
from training.features import Cache, sample
from training.labels import renumber_classes
from training.maps import fit_map
from training.statistics import fit_statistics

FOLDS, DRAWS, BATCH = 5, 5, 32
SEED = 7
"""Of the images that are scored."""
FOLDED = Forms(convolution="folded, packed")
"""Which form is fastest is not measured: on a busy machine chance would choose."""
FROZEN, STATISTICS, MAP, KNN = "frozen", "statistics", "map", "knn"
Right = dict[str, Float64[ndarray, "n"]]
"""By score: 1 for every image that is given its label, 0 for every other."""


@dataclass(frozen=True)
class Space:
    """A mask, or None for the frozen backbone; `bare` is the same without its map, whose forwards it shares."""

    mask: TaskMask | None
    bare: TaskMask | None
    bytes: int


def main(
    spec: BackboneSpec,
    data: Annotated[str, typer.Option(help="labelled images with a train and a test split")],
    work: Annotated[Path, typer.Option(help="folder for the files of all spaces, and for embeddings")],
    mask: Annotated[list[str] | None, typer.Option(help="NAME=FILE; may be repeated")] = None,
    share: Annotated[list[float] | None, typer.Option(help="of the target's statistics; may be repeated")] = None,
    bank: Annotated[int, typer.Option(help="images of the training split, for kNN and probe")] = 1000,
    queries: Annotated[int, typer.Option(help="images of the test split")] = 1000,
    mapped: Annotated[int, typer.Option(help="images that maps are fitted on")] = 200,
    as_run: Annotated[bool, typer.Option("--as-run", help="also with the statistics of a mask's file")] = False,
    test: Annotated[bool, typer.Option("--test", help="open the test split")] = False,
    out: Annotated[Path | None, typer.Option(help="append the rows to this file")] = None,
) -> None:
    """Print a row for every space, and the table."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    files = {name: Path(file) for name, _, file in (text.partition("=") for text in mask or ())}
    train = open_split(data, "train")
    known = sample(train, bank, SEED)
    asked = sample(renumber_classes(train, open_split(data, "test")), queries, SEED) if test else None
    spaces = make_spaces(spec, train, sample(train, mapped), files, share or [1.0], work, as_run)
    facts = {"data": Path(data).name, "backbone": spec.name, "bank": len(known.names)}
    facts |= {"queries": len(asked.names)} if asked is not None else {}
    rows = []
    for row in score(Engine(load_backbone(spec), slots=1, forms=FOLDED), spaces, known, asked, work):
        rows.append(row)
        line = json.dumps(facts | row)
        print(line, flush=True)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
    for text in format_table(rows, "test" if test else "folds"):
        print(text)


def make_spaces(
    spec: BackboneSpec,
    images: ImageSet,
    mapped: ImageSet,
    files: Mapping[str, Path],
    shares: Sequence[float],
    work: Path,
    as_run: bool,
) -> dict[str, Space]:
    """Every space by its name, fitted on training images alone and written to `work`; those without a mask first."""
    backbone, engine = load_backbone(spec), Engine(load_backbone(spec), slots=1, forms=FOLDED)
    spaces = {FROZEN: Space(None, None, 0)}

    def add(name: str, make: Callable[[], TaskMask]) -> None:
        """A space without a map and the same with one."""
        bare = _keep(work / f"{_file(name)}.smn", backbone, make) if name else None
        spaces.update({name: Space(bare, bare, _bytes(work, name))} if name else {})
        mapped_name = f"{name} + {MAP}" if name else MAP
        with_map = _keep(work / f"{_file(mapped_name)}.smn", backbone, lambda: _map(engine, bare, mapped))
        spaces[mapped_name] = Space(with_map, bare, _bytes(work, mapped_name))

    def measured(mask: TaskMask | None, share: float) -> TaskMask:
        plain = make_all_on(backbone) if mask is None else mask
        return replace(plain, state=fit_statistics(backbone, images, mask, share=share), digest=None)

    add("", lambda: make_all_on(backbone))
    for share in shares:
        add(_named(STATISTICS, share), lambda share=share: measured(None, share))  # type: ignore[misc]
    for name, path in files.items():
        mask = replace(read_mask(path, backbone.layout), head=None, affine=None)
        add(f"mask {name}", lambda mask=mask: replace(mask, state={}, digest=None))  # type: ignore[misc]
        for share in shares:
            add(f"mask {name} + {_named(STATISTICS, share)}", lambda m=mask, s=share: measured(m, s))  # type: ignore[misc]
        if mask.state and as_run:
            add(f"mask {name} + its run's statistics", lambda mask=mask: replace(mask, digest=None))  # type: ignore[misc]
    return spaces


def _named(what: str, share: float) -> str:
    return what if share == 1 else f"{what} {share:g}"


def _file(name: str) -> str:
    return name.replace(" + ", "+").replace(" ", "-").replace("'", "")


def _bytes(work: Path, name: str) -> int:
    return (work / f"{_file(name)}.smn").stat().st_size


def _keep(path: Path, backbone: Backbone, make: Callable[[], TaskMask]) -> TaskMask:
    return read_mask(path, backbone.layout) if path.exists() else write_mask(make(), path)


def _map(engine: Engine, bare: TaskMask | None, images: ImageSet) -> TaskMask:
    if bare is None:
        return make_all_on(engine.backbone, fit_map(engine, None, images, precision="int8"))
    engine.prepare(bare)
    mapped = replace(bare, affine=fit_map(engine, bare.digest, images, precision="int8"), digest=None)
    engine.release(str(bare.digest))
    return mapped


def score(
    engine: Engine, spaces: Mapping[str, Space], bank: Subset, tested: Subset | None, work: Path
) -> Iterator[dict[str, Any]]:
    """The rows: scores of every space, and its paired changes against the frozen backbone and the best control.

    Spaces without a mask come first, since the control is chosen among them.
    """
    cache = Cache([work / "embeddings"])
    known, asked = _labels(bank), _labels(tested) if tested is not None else None

    def embed(space: Space, images: Subset) -> ndarray:
        digest = space.bare.digest if space.bare is not None else None
        if space.bare is not None and not engine.ready(str(digest)):
            engine.prepare(space.bare)
        z = cache.embed(engine, digest, images, BATCH).z
        affine = space.mask.affine if space.mask is not None else None
        return affine.apply(z) if affine is not None else z

    folds: dict[str, Right] = {}
    test: dict[str, Right] = {}
    few: dict[str, list[float]] = {}

    def measure(name: str) -> None:
        z = embed(spaces[name], bank)
        folds[name] = score_folds(z, known)
        if tested is None or asked is None:
            return
        queries = embed(spaces[name], tested)
        test[name] = {probe: _right(find(z, known, queries), asked) for probe, find in probes.PROBES.items()}
        few[name] = score_few(z, known, queries, asked, DRAWS).tolist()

    def make_row(name: str) -> dict[str, Any]:
        mask = spaces[name].mask
        row: dict[str, Any] = {"space": name, "off": mask.n_off if mask else 0, "bytes": spaces[name].bytes}
        row |= {"control": best, "folds": _changes(folds, name, best)}
        if test:
            row |= {"test": _changes(test, name, best), "five_labels": [round(value, 4) for value in few[name]]}
        return row

    controls = [name for name in spaces if not name.startswith("mask")]
    for name in controls:
        measure(name)
    best = max(controls, key=lambda name: folds[name][KNN].mean())
    yield from map(make_row, controls)
    for name in spaces:
        if name not in controls:
            measure(name)
            yield make_row(name)


def score_folds(z: ndarray, labels: ndarray) -> Right:
    """Whether every image is given its label by kNN, from the folds without it."""
    right = np.empty(len(z))
    for rest, fold in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(z, labels):
        right[fold] = _right(probes.knn(z[rest], labels[rest], z[fold]), labels[fold])
    return {KNN: right}


def _labels(images: Subset) -> ndarray:
    if images.labels is None:
        raise typer.BadParameter("the images have no labels", param_hint="--data")
    return images.labels


def _right(predicted: ndarray, labels: ndarray) -> Float64[ndarray, "n"]:
    return np.asarray((predicted == labels).astype(np.float64))


def _changes(right: Mapping[str, Right], name: str, control: str) -> dict[str, Any]:
    """Each score, and its change against the frozen backbone and the control with their standard errors."""
    found: dict[str, Any] = {}
    for probe, mine in right[name].items():
        found[probe] = round(float(mine.mean()), 4)
        for label, other in ((FROZEN, FROZEN), ("control", control)):
            change = compare(right[other][probe], mine)
            found[f"{probe}_over_{label}"] = [round(change.change, 4), round(change.error, 4)]
    return found


def format_table(rows: Sequence[Mapping[str, Any]], split: str) -> list[str]:
    """The rows as a table in Markdown; changes in points, with their standard errors."""
    scores = [probe for probe in probes.PROBES if probe in rows[0][split]]
    heads = [head for probe in scores for head in (probe, "over frozen", f"over {rows[0]['control']}")]
    heads = ["space", *heads, "five labels", "OFF", "bytes"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [row["space"]]
        for probe in scores:
            cells.append(f"{row[split][probe]:.3f}")
            cells += [_points(row[split][f"{probe}_over_{label}"]) for label in (FROZEN, "control")]
        few = row.get("five_labels")
        cells += [f"{np.mean(few):.3f}" if few else "", f"{row['off']:,}", f"{row['bytes']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _points(change: Sequence[float]) -> str:
    value, error = change
    return f"{100 * value:+.1f} ± {100 * error:.1f}" if error else f"{100 * value:+.1f}"


if __name__ == "__main__":
    typer.run(model_options(main))
