"""Which map that needs no training brings most? Closed forms on the untouched backbone, without labels.

    python -m benchmarks.maps --data SET --data OTHER --weights W [--test] [--out FILE]

`within` is what `smn map` and `smn adapt` fit: whitened by how gentle crops of an image differ. Beside it: the same
with stronger crops, standardised features, whitening by the total scatter, and a second step that whitens what a first
map gave by how much images differ that are among each other's ten nearest. All are fitted on up to --fit images of the
train split. Scores are of three folds of the train split, to choose by; with --test of the test split against the train
split. Changes against the frozen backbone are paired by image, five labels by 20 draws. One JSON line a set and form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray
from sklearn.model_selection import StratifiedKFold

from benchmarks.scores import rounded, score_few, tell
from smn_core.affine import Affine
from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.imageset import ImageSet
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options
from training.data import open_split
from training.evaluation import probes
from training.evaluation.paired import compare
from training.evaluation.signs import neighbours
from training.features import embed, embed_view, sample
from training.labels import renumber_classes
from training.maps import GENTLE_SCALE, VIEW_SEEDS
from training.within import fit_diagonal, fit_within

STRONG_SCALE, NEAREST, FOLDS, DRAWS, BATCH, SEED = (0.25, 1.0), 10, 3, 20, 32, 7
Right = dict[str, Float64[ndarray, "n"]]


def main(
    spec: BackboneSpec,
    data: Annotated[list[str], typer.Option(help="labelled images with a train and a test split; may be repeated")],
    most: Annotated[int, typer.Option(help="images of each split that are scored")] = 600,
    fit: Annotated[int, typer.Option(help="images that a map is fitted on; views are of a third of them")] = 600,
    test: Annotated[bool, typer.Option("--test", help="score on the test split")] = False,
    out: Annotated[Path | None, typer.Option(help="append the lines to this file")] = None,
) -> None:
    """Print a line for every set and form."""
    torch.set_num_threads(1)
    engine = Engine(load_backbone(as_trained(spec, None)), slots=1)
    for name in data:
        for row in compare_on(engine, name, most, fit, test):
            tell(row, out)


def compare_on(engine: Engine, data: str, most: int, fit: int, test: bool) -> Iterator[dict[str, Any]]:
    """The rows of one set."""
    train = open_split(data, "train")
    bank = embed(engine, None, sample(train, most, SEED), BATCH)
    assert bank.labels is not None
    asked = embed(engine, None, sample(renumber_classes(train, open_split(data, "test")), most, SEED), BATCH)
    maps = fit_maps(engine, sample(train, fit, SEED))
    before: Right | None = None
    for form, affine in {"frozen": None, **maps}.items():
        a, b = (affine.apply(part.z) if affine is not None else part.z for part in (bank, asked))
        if test:
            assert asked.labels is not None
            right = score(a, bank.labels, b, asked.labels)
        else:
            right = score_folds(a, bank.labels)
        before = before or right
        kept = {name: rounded(compare(before[name], right[name])) for name in right}
        yield {"data": Path(data).name, "split": "test" if test else "train", "fitted_on": fit, "form": form, **kept}


def fit_maps(engine: Engine, images: ImageSet) -> dict[str, Affine]:
    """The closed forms by name."""
    whole = embed(engine, None, images, BATCH).z
    mean = whole.mean(0, dtype=np.float64).astype(np.float32)

    def views(scale: tuple[float, float]) -> Float32[ndarray, "v n d"]:
        most = max(2, len(whole) // 3)
        return np.stack([embed_view(engine, None, images, s, BATCH, scale=scale, most_images=most) for s in VIEW_SEEDS])

    gentle, strong = views(GENTLE_SCALE), views(STRONG_SCALE)
    found = {
        "within .35": fit_within(gentle, mean),
        "within .5": fit_within(gentle, mean, 0.5),
        "strong .35": fit_within(strong, mean, 0.35),
        "strong .5": fit_within(strong, mean, 0.5),
        "diagonal": fit_diagonal(whole),
        "total .35": fit_within(np.stack([whole, 2 * mean - whole]), mean, 0.35),  # two "views" around the mean
    }
    for name in ("within .35", "strong .35", "strong .5"):
        found[f"{name}, then neighbours"] = then_neighbours(found[name], whole)
    return found


def then_neighbours(first: Affine, whole: Float32[ndarray, "n d"]) -> Affine:
    """A map, and whitening to the power .5 by the scatter of images that are among each other's nearest under it."""
    z = first.apply(whole)
    second = fit_within(pairs_of(z), np.zeros(z.shape[1], np.float32), 0.5)
    assert first.matrix is not None
    assert second.matrix is not None
    return Affine(first.mean, matrix=second.matrix @ first.matrix)


def pairs_of(z: Float32[ndarray, "n d"]) -> Float32[ndarray, "2 p d"]:
    """Both images of every pair that are among each other's `NEAREST`, as two views of one thing."""
    near: Bool[ndarray, "n n"] = np.zeros((len(z), len(z)), bool)
    np.put_along_axis(near, neighbours(z, min(NEAREST, len(z) - 1)), True, axis=1)
    a, b = np.nonzero(np.triu(near & near.T))
    return np.stack([z[a], z[b]])


def score_folds(z: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"]) -> Right:
    """As `score`, every fold asked against the others."""
    cuts = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(z, labels)
    found = [(ask, score(z[rest], labels[rest], z[ask], labels[ask])) for rest, ask in cuts]
    right = {name: np.empty(len(z)) for name in ("knn", "probe")}
    for ask, part in found:
        for name, values in right.items():
            values[ask] = part[name]
    return right | {"five_labels": np.concatenate([part["five_labels"] for _, part in found])}


def score(
    bank: Float32[ndarray, "n d"],
    known: Int64[ndarray, "n"],
    asked: Float32[ndarray, "m d"],
    labels: Int64[ndarray, "m"],
) -> Right:
    """1 for every image of `asked` that gets its label, by score; with five labels a class the share of every draw."""
    return {
        "knn": (probes.knn(bank, known, asked) == labels).astype(np.float64),
        "probe": (probes.linear(bank, known, asked) == labels).astype(np.float64),
        "five_labels": score_few(bank, known, asked, labels, DRAWS),
    }


if __name__ == "__main__":
    typer.run(model_options(main))
