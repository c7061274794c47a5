"""Is the verdict right? Judge masks without labels on sets of images, and hold the answers against the labels.

    python -m benchmarks.verdicts --data SET --data OTHER --mask A.smn --mask B.smn --weights W [--out FILE]

Every mask is judged on every set, so most pairs are foreign ones. A pair has three spaces: the mask as it is in the
file, its flips alone, and its flips under a map fitted on the set. The judgement sees images of the train split,
without labels. The truth is the change of kNN on the test split against the frozen backbone, image by image, with its
standard error: a change beyond two of them helps or harms, and inside them any answer is right. The probe stands
beside, and five labels a class: the mean of 40 draws, with its standard error over the draws. One JSON line a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy import ndarray

from benchmarks.scores import rounded, score_few, tell
from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options
from smn_core.verdict import ADOPT, LEAVE_IT
from training.data import open_split
from training.evaluation import probes
from training.evaluation.controls import make_all_on, strip
from training.evaluation.paired import EVIDENCE, SIGNS, compare
from training.evaluation.rule import ALL
from training.evaluation.verdict import Verdict, judge
from training.features import Features, embed, sample
from training.labels import renumber_classes
from training.maps import fit_map

DRAWS = 40
SEED = 7
"""Of the images that are taken."""
BATCH = 32


def main(
    spec: BackboneSpec,
    data: Annotated[list[str], typer.Option(help="labelled images with a train and a test split; may be repeated")],
    mask: Annotated[list[Path], typer.Option(help="a mask file; may be repeated")],
    images: Annotated[int, typer.Option(help="of the train split, that the judgement sees")] = 150,
    most: Annotated[int, typer.Option(help="images of the bank, and of the test split")] = 1400,
    out: Annotated[Path | None, typer.Option(help="append the lines to this file")] = None,
) -> None:
    """Print a line for every set and space, and at the end how many answers were right."""
    torch.set_num_threads(1)
    files = {_name(path): read_mask(path) for path in mask}
    backbone = load_backbone(as_trained(spec, next(iter(files.values())), mask[0]))
    rows = []
    for name in data:
        for row in judge_on(Engine(backbone, slots=1), name, files, images, most):
            rows.append(row)
            tell(row, out)
    wrong = [row for row in rows if not row["right"]]
    adopted = [row for row in wrong if row["answer"] == ADOPT]
    print(f"{len(rows)} pairs, {len(rows) - len(wrong)} answers right, {len(adopted)} harmful ones adopted")


def _name(path: Path) -> str:
    """A candidate in a run's folder, `photos.run/mask.smn`, is called after the run too."""
    return f"{path.parent.stem}/{path.stem}" if path.parent.suffix == ".run" else path.stem


def judge_on(
    engine: Engine, data: str, masks: dict[str, TaskMask], n_judged: int, most: int
) -> Iterator[dict[str, Any]]:
    """The rows of one set: frozen + map, then each mask as it is, bare, and under a map of this set."""
    train = open_split(data, "train")
    test = sample(renumber_classes(train, open_split(data, "test")), most, SEED)
    bank, seen = sample(train, most, SEED), sample(train, n_judged, SEED)
    spaces = {"frozen + map": make_all_on(engine.backbone, fit_map(engine, None, seen))}
    for name, mask in masks.items():
        bare = strip(mask)
        if bare is not None:
            engine.prepare(bare)
            mapped = replace(bare, affine=fit_map(engine, bare.digest, seen), digest=None)
            engine.release(str(bare.digest))
            spaces |= {f"{name}, flips alone": replace(bare, digest=None), f"{name}, flips + map": mapped}
        if mask.affine is not None:
            spaces[name] = mask
    verdicts = judge(engine, list(spaces.items()), seen, None, batch_size=BATCH)
    before = _embed(engine, None, bank), _embed(engine, None, test)
    made: dict[str | None, tuple[Features, Features]] = {None: before}
    for verdict in verdicts:
        mask = spaces[verdict.name]
        bare = strip(mask)
        key = bare.digest if bare is not None else None
        if bare is not None and key not in made:
            engine.prepare(bare)
            made = {None: before, key: (_embed(engine, key, bank), _embed(engine, key, test))}
            engine.release(str(key))
        yield _row(Path(data).name, verdict, mask, before, made[key])


def _embed(engine: Engine, digest: str | None, images: ImageSet) -> Features:
    return embed(engine, digest, images, BATCH)


def _row(
    data: str, verdict: Verdict, mask: TaskMask, before: tuple[Features, Features], after: tuple[Features, Features]
) -> dict[str, Any]:
    known, asked = before[0].labels, before[1].labels
    assert known is not None
    assert asked is not None

    def mapped(z: ndarray) -> ndarray:
        return mask.affine.apply(z) if mask.affine is not None else z

    pairs = (before[0].z, before[1].z), (mapped(after[0].z), mapped(after[1].z))
    knn, probe = (
        compare(*((find(a, known, b) == asked).astype(np.float64) for a, b in pairs))
        for find in (probes.knn, probes.linear)
    )
    few = compare(*(score_few(a, known, b, asked, DRAWS) for a, b in pairs))
    truth = "helps" if knn.z > 2 else "harms" if knn.z < -2 else "neither"
    return {
        "data": data,
        "space": verdict.name,
        "off": mask.n_off,
        "answer": verdict.answer,
        "truth": truth,
        "right": not (
            (truth == "harms" and verdict.answer == ADOPT) or (truth == "helps" and verdict.answer == LEAVE_IT)
        ),
        "knn": rounded(knn),
        "probe": rounded(probe),
        "five_labels": rounded(few),
        "z": {sign: round(verdict.changes[sign][ALL].z, 2) for sign in (*SIGNS, EVIDENCE)} if verdict.changes else {},
        "z_over_map": round(verdict.over_map[EVIDENCE][ALL].z, 2) if verdict.over_map else None,
        "judged_on": verdict.n_seen,
    }


if __name__ == "__main__":
    typer.run(model_options(main))
