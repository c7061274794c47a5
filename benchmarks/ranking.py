"""Which sign without labels ranks masks as their labels do? The signs of many masks of one set beside what they bring.

    python -m benchmarks.ranking --data SET --mask A.smn --mask B.smn --weights W [--out FILE]

Signs come from crops of `--judged` images of the train split, as in the race of `smn adapt`; gains are the kNN of
other images of the train split by halves of them, eight times, so that the test split chooses nothing. Each stands bare
and under a map that is fitted for the space. One JSON line a mask; at the end Spearman's correlation of every sign with
both gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float32, Int64
from numpy import ndarray
from scipy.stats import spearmanr

from benchmarks.scores import tell
from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.imageset import ImageSet
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options
from training.adapt.score import BATCH, VIEWS
from training.data import open_split
from training.evaluation import probes
from training.evaluation.controls import strip
from training.evaluation.paired import MARGIN, NEIGHBOURS, SIGNS, Measured, Pool, measure, weigh
from training.features import embed, embed_view, sample
from training.maps import fit_map

MAP_IMAGES, HALVES = 100, 4
GAINS = ("knn", "knn under a map")


@dataclass(frozen=True)
class Space:
    """Labelled embeddings of one space and its signs."""

    z: Float32[ndarray, "n d"]
    signs: Measured


def main(
    spec: BackboneSpec,
    data: Annotated[str, typer.Option(help="labelled images with a train split")],
    mask: Annotated[list[Path], typer.Option(help="a mask file; may be repeated")],
    judged: Annotated[int, typer.Option(help="images of the train split that the signs see")] = 150,
    most: Annotated[int, typer.Option(help="images of the train split for kNN")] = 900,
    out: Annotated[Path | None, typer.Option(help="append the lines to this file")] = None,
) -> None:
    """Print a line for every mask, and how well each sign ranks them."""
    torch.set_num_threads(1)
    engine = Engine(load_backbone(as_trained(spec, read_mask(mask[0]), mask[0])), slots=1)
    train = open_split(data, "train")
    images = Images(sample(train, most, 7), sample(train, judged, 3), sample(train, MAP_IMAGES, 5))
    frozen, rows = images.look(engine, None), []
    for path in mask:
        bare = strip(read_mask(path))
        if bare is None:
            continue  # nothing is OFF
        engine.prepare(bare)
        found = images.look(engine, bare.digest)
        engine.release(str(bare.digest))
        name = f"{path.parent.stem}/{path.stem}"
        rows.append(row_of(Path(data).name, name, bare.n_off, images.labels, frozen, found))
        tell(rows[-1], out)
    for line in correlate(rows):
        print(line)


@dataclass(frozen=True)
class Images:
    """Parts of a set: to score with labels, to see signs on, to fit a map on."""

    bank: ImageSet
    judged: ImageSet
    fitted: ImageSet

    @property
    def labels(self) -> Int64[ndarray, "n"]:
        assert self.bank.labels is not None
        return self.bank.labels

    def look(self, engine: Engine, digest: str | None) -> tuple[Space, Space]:
        """The space of a mask, bare and under its map."""
        z = embed(engine, digest, self.bank, BATCH).z
        n = len(self.judged.names)
        a, b, c, d = (
            embed_view(engine, digest, self.judged, seed, BATCH, scale=scale, most_images=n) for seed, scale in VIEWS
        )
        apply = fit_map(engine, digest, self.fitted).apply
        mapped = Pool((apply(a), apply(b)), (apply(c), apply(d)))
        return Space(z, measure(Pool((a, b), (c, d)))), Space(apply(z), measure(mapped))


def row_of(
    data: str,
    name: str,
    n_off: int,
    labels: Int64[ndarray, "n"],
    frozen: tuple[Space, Space],
    found: tuple[Space, Space],
) -> dict[str, Any]:
    """The gains and the changes of the signs of one mask, against the frozen backbone, each under a map too."""
    row: dict[str, Any] = {"data": data, "mask": name, "off": n_off}
    for gain, before, after in zip(GAINS, frozen, found, strict=True):
        row[gain] = round(score_knn(after.z, labels) - score_knn(before.z, labels), 4)
        under = gain.removeprefix("knn")
        old, new = before.signs.signs, after.signs.signs
        row |= {f"{sign}{under}": round(float((new[sign] - old[sign]).mean()), 4) for sign in SIGNS}
        apart = sum(float((new[sign] - old[sign]).mean() / old[sign].std()) for sign in (MARGIN, NEIGHBOURS))
        row[f"margin and neighbours, in deviations of the frozen ones{under}"] = round(apart, 3)
        row[f"evidence{under}"] = round(float(weigh(before.signs, after.signs).mean()), 3)
    return row


def score_knn(z: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"]) -> float:
    """The mean part of images that the other half of them labels rightly, over several halves."""
    right, rng = [], np.random.default_rng(0)
    for _ in range(HALVES):
        a, b = np.split(rng.permutation(len(labels)), [len(labels) // 2])
        right += [(probes.knn(z[x], labels[x], z[y]) == labels[y]).mean() for x, y in ((a, b), (b, a))]
    return float(np.mean(right))


def correlate(rows: list[dict[str, Any]]) -> list[str]:
    """A line for every sign: Spearman's correlation with both gains over the masks, whose gains differ."""
    signs = [key for key in rows[0] if key not in ("data", "mask", *GAINS)]
    lines = []
    for sign in signs:
        if len({row[sign] for row in rows}) == 1:
            lines.append(f"{sign}: the same for all masks")
            continue
        found = [spearmanr([row[sign] for row in rows], [row[gain] for row in rows]).statistic for gain in GAINS]
        lines.append(f"{sign}: " + ", ".join(f"{gain} {r:+.2f}" for gain, r in zip(GAINS, found, strict=True)))
    return lines


if __name__ == "__main__":
    typer.run(model_options(main))
