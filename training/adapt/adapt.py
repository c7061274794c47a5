"""The order of `smn adapt`: look, time, race, end; what ctrl-C, SIGTERM and a full disk leave."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smn_core import tensorfile
from smn_core.backbone import Backbone, load_backbone
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument
from smn_core.maskfile import require_mask_name
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, for_learning
from smn_core.verbs.recorded import require_places, run_folder, write_backbone
from smn_core.verbs.repack import require_codec
from smn_core.verdict import CANNOT_TELL
from training.adapt.budget import LOOK, TIMING, Budget
from training.adapt.candidates import CANDIDATES, list_candidates
from training.adapt.ending import Parts, end, write_nothing
from training.adapt.look import Found, cut, look
from training.adapt.race import Course, race
from training.adapt.record import RECORD, Record
from training.adapt.score import Scorer
from training.adapt.timing import choose_threads, time_step
from training.checkpoints import README
from training.data import Subset
from training.evaluation.labelled import open_few
from training.features import sample
from training.forms import choose_form
from training.hold import hold_folder
from training.identity import identify
from training.progress import Clock, Tell, number_of
from training.unseen import write_unseen

SUFFIX = ".smn"
SCORED_A_MINUTE, FEWEST_SCORED, MOST_SCORED = 10, 48, 300
"""Images that candidates are ranked on: more of them where there is more time."""
CHECKPOINTS_KEPT = 8
"""In weights of the backbone: what the runs of a race take on disk, with scores, momentum and two files at once."""


@dataclass(frozen=True)
class Request:
    """What a user asks of `smn adapt`; `minutes` bounds the whole of it.

    `threads` are torch's, set already; 0: the faster of one and torch's default is found out. `recipes` are names of
    candidates with what is special about them, in the order in which they are tried.
    """

    spec: BackboneSpec
    data: str
    out: Path
    minutes: float = 15.0
    labelled: Path | None = None
    seed: int = 0
    workers: int = 1
    threads: int = 0
    overwrite: bool = False
    command: Sequence[str] = ()
    recipes: Sequence[tuple[str, str]] = CANDIDATES
    codec: str = "zstd"

    @property
    def folder(self) -> Path:
        return run_folder(self.out)


@dataclass(frozen=True)
class Ended:
    """How it ended; after ctrl-C or SIGTERM the file changes nothing, and the same command goes on.

    `signal` is the number of the one that stopped it, or 0.
    """

    answer: str
    signal: int = 0

    @property
    def interrupted(self) -> bool:
        return self.signal != 0


def name_output(data: str) -> Path:
    """The file where none was asked for: `photos/` gives `photos.smn`, here."""
    name = data.partition("@")[0].removeprefix("torchvision:")
    return Path(f"{Path(name).resolve().stem or 'adapted'}{SUFFIX}")


def adapt(request: Request, tell: Tell, clock: Clock = time.monotonic, began: float | None = None) -> Ended:
    """Look, learn, judge, and write the file and its folder; every line for the user goes to `tell`.

    The minutes count from `began` by the clock, or from now on.

    Raises:
        SMNError: nothing can be done; the message names the fix.
    """
    budget = Budget(60 * request.minutes, clock() if began is None else began, clock)
    _require_options(request)
    learning = for_learning(request.spec)
    found = look(request.data, LOOK * budget.whole_s, tell, clock)
    spec = as_trained(learning, None)
    backbone = load_backbone(spec)
    with naming_full_disk(request.out), hold_folder(request.folder):
        _require_space(request, backbone)
        record = _open_record(request, found, backbone)
        write_backbone(request.folder, spec, backbone.fingerprint)
        try:
            return _adapt(request, spec, backbone, found, record, budget, tell)
        except KeyboardInterrupt as stopped:
            return _stop(request, backbone, record, tell, number_of(stopped))


def _adapt(
    request: Request, spec: BackboneSpec, backbone: Backbone, found: Found, record: Record, budget: Budget, tell: Tell
) -> Ended:
    seen, unseen = cut(found, request.seed)
    tell(f"{len(seen):,} images to learn from, {len(unseen):,} kept unseen for the verdict")
    held = Subset(found.images.source, found.images.indices[unseen])
    write_unseen(request.folder, held.names)
    images, clock = Subset(found.images.source, found.images.indices[seen]), budget.clock
    side_px = int(backbone.preprocess["input_size"][-1])
    candidates = list_candidates(len(seen), side_px, backbone.model, request.recipes)
    if not request.threads:
        choose_threads(spec, candidates[0].config, backbone.device, tell, clock)
    form = choose_form(spec, candidates[0].config, TIMING * budget.whole_s, tell, clock)
    candidates = [replace(c, config=form.apply(c.config)) for c in candidates]
    timed = candidates[0].config
    step_s = {
        c.name: time_step(form, timed, c.config, images, backbone.preprocess, request.workers, clock)
        for c in candidates
    }
    scored = int(min(MOST_SCORED, max(FEWEST_SCORED, SCORED_A_MINUTE * request.minutes)))
    scorer = Scorer(Engine(backbone, slots=1), sample(images, scored, request.seed), clock)
    tell(f"learning for {budget.learning_left_s / 60:.1f} minutes; ctrl-C keeps what is finished")
    only = tuple(int(i) for i in images.indices)
    course = Course(spec, request.data, only, request.seed, request.workers, request.command, budget, tell)
    race(course, candidates, step_s, record, scorer)
    parts = Parts(
        request.data, request.out, request.labelled, request.command, found, images, held, record, scorer, budget, tell,
        request.codec,
    )  # fmt: skip
    return Ended(end(parts))


def _open_record(request: Request, found: Found, backbone: Backbone) -> Record:
    if request.overwrite:
        for name in (RECORD, README):
            (request.folder / name).unlink(missing_ok=True)
    plan: dict[str, Any] = {
        "images": identify(found.images),
        "fingerprint": backbone.fingerprint,
        "preprocess": dict(backbone.preprocess),
        "seed": request.seed,
        "recipes": [name for name, _ in request.recipes],
    }
    return Record.open(request.folder, json.loads(tensorfile.canonical_json(plan)))


def _stop(request: Request, backbone: Backbone, record: Record, tell: Tell, number: int) -> Ended:
    """Leave a file that changes nothing, and say where the best is and how to go on."""
    write_nothing(backbone, CANNOT_TELL, "It was stopped before anything was judged.", request.out)
    best = record.best
    kept = f"the best so far is {record.path(best)}, not judged yet" if best is not None else "no run was finished yet"
    tell("")
    tell(f"stopped: {kept}; {request.out} changes nothing")
    tell("the same command goes on from what is finished")
    tell(f"verdict: {CANNOT_TELL}")
    return Ended(CANNOT_TELL, number)


def _require_options(request: Request) -> None:
    out = request.out
    require_codec(request.codec)
    require_mask_name(out)
    require_places(out)
    if request.labelled is not None:
        if not request.labelled.is_dir():
            raise InvalidArgument(f"--labelled {request.labelled} is no folder: it has a folder for each class")
        open_few(request.labelled)
    finished = out.exists() and (request.folder / README).exists()
    foreign = out.exists() and not (request.folder / RECORD).exists() and not finished
    if (finished or foreign) and not request.overwrite:
        raise InvalidArgument(f"{out} exists: give --out another name, or say --overwrite")


def _require_space(request: Request, backbone: Backbone) -> None:
    """Raise before the work if the disk is too full for the checkpoints of the runs."""
    needed = CHECKPOINTS_KEPT * 4 * backbone.layout.n_elements
    free = shutil.disk_usage(request.folder).free
    if free < needed:
        raise InvalidArgument(
            f"--out {request.out}: {free / 1e6:,.0f} MB are free there, the runs take {needed / 1e6:,.0f} MB: free "
            "some, or give --out on another disk"
        )


@contextmanager
def naming_full_disk(out: Path) -> Iterator[None]:
    """Turn "no space left" into an error that names the fix.

    Raises:
        InvalidArgument: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InvalidArgument(
            f"{error.filename or out}: the disk is full: free some space and type the same command, which goes on, or "
            "give --out on another disk"
        ) from error
