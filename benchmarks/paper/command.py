"""`smn bench paper`: the paper's three label-efficient settings on one set of images, as one command.

DIR/root.smn supervised.smn finetune.safetensors few/ cascade-mixture/ cascade-random/    the runs
DIR/plan.json embeddings/ scores/                                                         what makes it resumable
DIR/paper.json paper.md                                                                   what comes out
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.paper.estimate import Planned, Speed, in_words, plan
from benchmarks.paper.scores import Scorer, open_splits, read_scores
from benchmarks.paper.table import make_page, make_rows
from benchmarks.paper.wanted import CLUSTERS, EXPERTS, Wanted
from smn_core import tensorfile
from smn_core.backbone import load_backbone
from smn_core.errors import InvalidArgument, SMNError
from smn_core.files import write_bytes
from smn_core.verbs import show
from smn_core.verbs.stderr import note
from training.cascade.build import build
from training.checkpoints import README, is_finished
from training.identity import identify
from training.plan import PLAN, require_same
from training.progress import count
from training.request import Request
from training.run import train

SMALL_SET = 20_000
"""Below so many images few labels are numbers for every class, as 1 % of them would be too few."""


def choose_labels(n_images: int) -> tuple[float, ...]:
    """The amounts of few labels where none was said."""
    return (0.01, 0.1) if n_images >= SMALL_SET else (5, 20)


def run(wanted: Wanted, *, dry_run: bool, overwrite: bool, as_json: bool) -> bool:
    """Do all of it, or with `dry_run` say what will be done; returns whether nothing failed.

    Raises:
        SMNError: nothing can be done: the set, the backbone, a recipe or the folder.
        KeyboardInterrupt: ctrl-C; the same command goes on.
    """
    images, test = open_splits(wanted.data)
    wanted = wanted if wanted.labels else replace(wanted, labels=choose_labels(len(images.names)))
    if dry_run:
        planned = plan(wanted, images, test, Speed(wanted.spec, images, wanted.workers))
        tell_plan(planned, as_json=as_json)
        return True
    backbone = load_backbone(wanted.spec)
    _open_folder(wanted, backbone.fingerprint, identify(images), overwrite=overwrite)
    facts = {
        "backbone": backbone.architecture,
        "device": str(backbone.device),
        "train": f"{len(images.names):,}",
        "test": f"{len(test.names):,}",
        "recipes": ", ".join(vars(wanted.recipes).values()),
        "seed": wanted.seed,
    }
    del backbone
    failed = _learn(wanted)
    began = time.monotonic()
    note("scoring on the test split")
    Scorer(wanted, wanted.spec, note).score()
    note(f"scored in {in_words(time.monotonic() - began)}")
    name = name_set(wanted.data)
    rows = make_rows(read_scores(wanted.out))
    found = {"data": name, **facts, "command": list(wanted.command), "failed": failed, "rows": rows}
    write_bytes(wanted.out / "paper.json", f"{json.dumps(found, indent=1)}\n".encode())
    page = make_page(name, facts, rows, failed)
    write_bytes(wanted.out / "paper.md", page.encode())
    if as_json:
        show.as_json(found)
    else:
        print(page)
    note(f"{wanted.out / 'paper.md'}, {wanted.out / 'paper.json'}")
    return not failed


def name_set(data: str) -> str:
    """`torchvision:dtd@/data` -> `dtd`, `/data/rsscn7/` -> `rsscn7`."""
    return Path(data.partition("@")[0].removeprefix("torchvision:")).resolve().stem


def tell_plan(planned: Sequence[Planned], *, as_json: bool) -> None:
    """What will be done, with the time that each piece is expected to take."""
    total = sum(piece.seconds for piece in planned)
    if as_json:
        show.as_json({"work": [vars(piece) for piece in planned], "seconds": total})
        return
    rows = [(piece.name, piece.what, in_words(piece.seconds)) for piece in planned]
    show.table(("work", "what", "about"), [*rows, ("in all", "", in_words(total))])


def _open_folder(wanted: Wanted, fingerprint: str, images: str, *, overwrite: bool) -> None:
    """Make the folder; one that exists must hold an equal plan, or none of `overwrite`'s work.

    Raises:
        InvalidArgument: it holds something else.
    """
    path = wanted.out / PLAN
    facts = {"images": images, "fingerprint": fingerprint, **wanted.as_plan()}
    facts = json.loads(tensorfile.canonical_json(facts))
    if path.exists() and overwrite:
        shutil.rmtree(wanted.out)
    if path.exists():
        require_same(path, facts, wanted.out)
    elif wanted.out.exists() and any(wanted.out.iterdir()):
        raise InvalidArgument(f"--out {wanted.out} is not empty and no earlier start made it: give another folder")
    (wanted.out / "few").mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(facts, indent=1).encode())


def _learn(wanted: Wanted) -> dict[str, str]:
    """Every run that is not finished, in turn. One that cannot work costs no other; its reason is returned."""
    work: list[tuple[str, Callable[[], bool], Callable[[], object]]] = [
        (str(request.out.relative_to(wanted.out)), _is_done(request), _trainer(request)) for request in wanted.runs()
    ]
    if EXPERTS not in wanted.skip:
        for clusters in CLUSTERS:
            readme = wanted.cascade_folder(clusters) / README
            work.append((f"cascade-{clusters}", readme.exists, _builder(wanted, clusters)))
    failed = {}
    for number, (name, is_done, do) in enumerate(work, 1):
        place = f"[{number}/{len(work)}] {name}"
        if is_done():
            note(f"{place}: finished before")
            continue
        note(place)
        began = time.monotonic()
        try:
            do()
        except SMNError as error:
            failed[name] = str(error)
            note(f"{place}: not done: {error}")
        else:
            note(f"{place}: {in_words(time.monotonic() - began)}")
    return failed


def _is_done(request: Request) -> Callable[[], bool]:
    return lambda: is_finished(request.out)


def _trainer(request: Request) -> Callable[[], object]:
    return lambda: train(request)


def _builder(wanted: Wanted, clusters: str) -> Callable[[], object]:
    def make() -> None:
        if not is_finished(wanted.root().out):
            raise InvalidArgument("there is no root to go on from")
        build(wanted.cascade(clusters), count, note)

    return make
