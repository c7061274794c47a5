"""Learn the masks of a manifest: check all entries first, then run the good ones side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from smn_core.backbone import Backbone, load_backbone
from smn_core.errors import InvalidArgument, SMNError
from smn_core.files import write_bytes
from smn_core.tensorfile import canonical_json, digest_of
from training.checkpoints import CHECKPOINT, is_finished
from training.plan import PLAN, Plan, forget, make_plan, require_same
from training.progress import Bar, Tell, stopping_midway
from training.several.jobs import FanOut, Job, Push, is_pushed, require_server, sum_steps
from training.several.manifest import Entry

TRAINED, PUSHED, SKIPPED, FAILED = "trained", "pushed", "skipped", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of an entry.

    `state` is trained, pushed (the mask was trained before), skipped (nothing was left to do) or failed. `config` is
    the digest of everything that decides the mask, "" for an entry that could not be checked.
    """

    entry: Entry
    state: str
    config: str = ""
    trouble: str = ""

    def as_json(self) -> dict[str, Any]:
        job = self.entry.job
        found = {"mask": self.entry.number, "out": str(job.request.out) if job else self.entry.out}
        found |= {"state": self.state, "config": self.config, "trouble": self.trouble}
        if self.state != FAILED and job is not None:
            found |= {"digest": digest_of(job.request.out.read_bytes()), "push": asdict(job.push) if job.push else None}
        return found


@dataclass(frozen=True)
class _Checked:
    """An entry that can run, or that ran before. `steps` are those of the whole run."""

    entry: Entry
    plan: Plan
    steps: int
    job: Job
    nothing_left: bool = False

    @property
    def config(self) -> str:
        return digest_of(canonical_json(self.plan).encode())


def run_many(
    entries: Sequence[Entry],
    fan_out: FanOut,
    bar: Bar,
    say: Tell,
    *,
    resume: bool,
    overwrite: bool,
) -> list[Outcome]:
    """Check all entries, run those that can run, and return what became of each, in the order of the manifest.

    Raises:
        StoppedMidway: a signal; every run that had begun wrote a checkpoint.
    """
    ready, outcomes = _check_all(entries, say, resume=resume, overwrite=overwrite)
    jobs = [checked.job for checked in ready]
    for checked in ready:
        _begin(checked, overwrite=overwrite)
    total = sum(checked.steps for checked in ready if not checked.job.trained)
    with stopping_midway(), bar(f"steps of {len(ready)} masks", total) as advance:
        failed = fan_out(jobs, sum_steps(advance), keep_going=True)
    for number, checked in enumerate(ready):
        state = FAILED if number in failed else PUSHED if checked.job.trained else TRAINED
        outcomes[checked.entry.number] = Outcome(checked.entry, state, checked.config, failed.get(number, ""))
    return [outcomes[entry.number] for entry in entries]


def _check_all(
    entries: Sequence[Entry], say: Tell, *, resume: bool, overwrite: bool
) -> tuple[list[_Checked], dict[int, Outcome]]:
    """The entries that have something left to do, and the outcomes of the others by number."""
    check = _Check(resume=resume, overwrite=overwrite)
    ready: list[_Checked] = []
    outcomes: dict[int, Outcome] = {}
    for entry in entries:
        try:
            checked = check(entry)
        except (SMNError, OSError) as error:
            outcomes[entry.number] = Outcome(entry, FAILED, trouble=str(error))
            say(f"warning: {entry.name} will not run: {error}")
            continue
        if checked.nothing_left:
            outcomes[entry.number] = Outcome(entry, SKIPPED, checked.config)
        else:
            ready.append(checked)
    return ready, outcomes


def _begin(checked: _Checked, *, overwrite: bool) -> None:
    """Write the plan of a run. From then on every start of the run resumes it, after a crash as with `--resume`."""
    request = checked.job.request
    if overwrite:
        forget(request)
    request.folder.mkdir(exist_ok=True)
    write_bytes(request.folder / PLAN, json.dumps(checked.plan, indent=1).encode())


class _Check:
    """Checks entries one by one. Each backbone is loaded once, and each server asked once."""

    def __init__(self, *, resume: bool, overwrite: bool) -> None:
        self._resume, self._overwrite = resume, overwrite
        self._backbones: dict[str, Backbone | SMNError] = {}
        self._servers: dict[tuple[str, str], SMNError | None] = {}

    def __call__(self, entry: Entry) -> _Checked:
        """Check one entry.

        Raises:
            SMNError: something about the entry cannot work.
        """
        if entry.job is None:
            raise InvalidArgument(entry.trouble)
        job = entry.job
        request = replace(job.request, resume=self._resume, overwrite=self._overwrite)
        plan, steps = make_plan(request, self._backbone(job))
        job = replace(job, request=replace(request, resume=True, overwrite=False))
        file = request.folder / PLAN
        if self._resume and file.exists():
            require_same(file, plan, request.out)
            job = replace(job, trained=is_finished(request.out))
        elif self._resume and (request.out.exists() or (request.folder / CHECKPOINT).exists()):
            raise InvalidArgument(
                f"{request.out} was not begun by train-many: finish it with smn train --resume, or say --overwrite"
            )
        if job.trained and (job.push is None or is_pushed(request.out, request.folder, job.push)):
            return _Checked(entry, plan, steps, job, nothing_left=True)
        if job.push is not None:
            self._require_server(job.push)
        return _Checked(entry, plan, steps, job)

    def _backbone(self, job: Job) -> Backbone:
        spec = replace(job.request.spec, device="cpu")  # the GPUs belong to the runs, perhaps on other nodes
        key = repr(spec)
        if key not in self._backbones:
            try:
                self._backbones[key] = load_backbone(spec)
            except SMNError as error:
                self._backbones[key] = error
        found = self._backbones[key]
        if isinstance(found, SMNError):
            raise found
        return found

    def _require_server(self, push: Push) -> None:
        key = push.server, push.key
        if key not in self._servers:
            try:
                require_server(push)
                self._servers[key] = None
            except SMNError as error:
                self._servers[key] = error
        found = self._servers[key]
        if found is not None:
            raise found
