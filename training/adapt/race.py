"""Try candidates within a time: a short run of each first, then the best ones go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smn_core.errors import InvalidMask
from smn_core.mask import TaskMask
from smn_core.spec import BackboneSpec
from training.adapt.budget import LEARNING_STARTS_S, Budget
from training.adapt.candidates import FEWEST_STEPS, Candidate, size
from training.adapt.record import Record, Run
from training.adapt.score import Scorer
from training.calibrate import CENTRE_CROPS
from training.config import Config
from training.progress import Tell
from training.request import Request
from training.run import build_learner, export_learned, finish, fit, prepare

HEATS = 0.45
"""Share of the learning time for the first, short runs."""
STEPS_OF_A_HEAT = 24
"""Fewer do not tell candidates apart: rather try fewer of them."""
RESERVE = 1.1
"""A step may take so much longer than it was timed."""
MEASURING = 0.2
"""Share of a run's seconds in which its head may be calibrated."""
EMBEDDING_OF_A_STEP = 0.4
"""A step embeds its crops and goes back through them; embedding alone is about so much of it."""
TELL_EVERY_S = 15.0


@dataclass(frozen=True)
class Course:
    """What all runs of a race have in common. `only` are the numbers of the images to learn from."""

    spec: BackboneSpec
    data: str
    only: tuple[int, ...]
    seed: int
    workers: int
    command: Sequence[str]
    budget: Budget
    tell: Tell


def race(
    course: Course, candidates: Sequence[Candidate], step_s: Mapping[str, float], record: Record, scorer: Scorer
) -> None:
    """Run candidates until the learning time ends, and keep every finished run in the record.

    None begins when there is no time left for its start, not even the first one.

    Args:
        candidates: those of which there is time for fewer are tried in this order.
        step_s: seconds that a step of each is expected to take.

    Raises:
        KeyboardInterrupt: ctrl-C; the record has what was finished.
    """
    seconds = dict(step_s)
    course.tell(f"without a mask an image keeps {scorer.neighbours_kept:.3f} of its neighbours between two views")
    heats = share_out(candidates, seconds, HEATS * course.budget.learning_left_s)
    entered = [c for c in candidates if c.name in heats or record.best_of(c.name) is not None]
    for i, candidate in enumerate(entered):
        if record.best_of(candidate.name) is None:
            if course.budget.learning_left_s <= LEARNING_STARTS_S:
                course.tell(f"no time is left for {candidate.name}: more --minutes let it learn")
                continue
            _run(course, candidate, None, heats[candidate.name], seconds, record, scorer)
        elif i == 0:
            course.tell(f"{len(record.runs)} runs are finished already, in {record.folder}")
    while True:
        if (chosen := _choose(course, entered, seconds, record)) is not None:
            _run(course, *chosen, course.budget.learning_left_s, seconds, record, scorer)
        elif (late := _find_late(course, candidates, entered, seconds)) is not None:
            entered.append(late)
            _run(course, late, None, course.budget.learning_left_s, seconds, record, scorer)
        else:
            return


def _find_late(
    course: Course, candidates: Sequence[Candidate], entered: Sequence[Candidate], step_s: Mapping[str, float]
) -> Candidate | None:
    """Where none of those that entered promises anything: the next one, if the time that is left tells something."""
    left_s = course.budget.learning_left_s - LEARNING_STARTS_S
    return next((c for c in candidates if c not in entered and left_s >= STEPS_OF_A_HEAT * step_s[c.name]), None)


def share_out(candidates: Sequence[Candidate], step_s: Mapping[str, float], heat_s: float) -> dict[str, float]:
    """The seconds of each candidate's heat, by its name; those that do not fit have none.

    In their order candidates enter as long as each can take the steps that tell something. What one needs for them it
    gets, and what is left goes to those with less, so that all have alike as far as that can be. The first one enters
    in any case.
    """
    needs: dict[str, float] = {}
    for candidate in candidates:
        needed = STEPS_OF_A_HEAT * step_s[candidate.name] + LEARNING_STARTS_S
        if not needs or sum(needs.values()) + needed <= heat_s:
            needs[candidate.name] = needed
    shares: dict[str, float] = {}
    left = heat_s
    for number, name in enumerate(sorted(needs, key=lambda name: needs[name], reverse=True)):
        shares[name] = max(min(needs[name], left), left / (len(needs) - number))
        left -= shares[name]
    return shares


def _choose(
    course: Course, entered: Sequence[Candidate], step_s: Mapping[str, float], record: Record
) -> tuple[Candidate, Run] | None:
    """The best candidate that may go on, and the run that it goes on from; None: none promises anything, or no time."""
    ranked = sorted(entered, key=lambda c: _score(record, c), reverse=True)
    for candidate in ranked:
        before = record.best_of(candidate.name)
        if before is None or before.score < 0:
            continue
        went_on = max(run.total_steps for run in record.runs if run.candidate == candidate.name)
        # A run that went on and came out worse shows where the candidate ends.
        if went_on > before.total_steps or candidate.most_steps - went_on < FEWEST_STEPS:
            continue
        if _count_steps(course.budget.learning_left_s, step_s[candidate.name]) >= FEWEST_STEPS:
            return candidate, before
    return None


def _score(record: Record, candidate: Candidate) -> float:
    best = record.best_of(candidate.name)
    return best.score if best is not None else -math.inf


def _count_steps(seconds: float, step_s: float) -> int:
    return int((seconds - LEARNING_STARTS_S) / (RESERVE * step_s))


def _run(
    course: Course,
    candidate: Candidate,
    before: Run | None,
    seconds: float,
    step_s: dict[str, float],
    record: Record,
    scorer: Scorer,
) -> None:
    """Run a candidate for so many seconds at most, from the end of an earlier run if there is one; keep it."""
    clock, done = course.budget.clock, before.total_steps if before is not None else 0
    began = clock()
    measuring_s = 0.0 if before is not None else min(MEASURING * seconds, _expect_measuring_s(candidate, step_s))
    n_steps = _count_steps(seconds - measuring_s, step_s[candidate.name])
    n_steps = min(max(FEWEST_STEPS, n_steps), candidate.most_steps - done)
    config = size(candidate, n_steps, goes_on=before is not None)
    name = f"{candidate.name}-{sum(run.candidate == candidate.name for run in record.runs) + 1}.smn"
    course.tell(f"{candidate.name}: {n_steps} steps ({candidate.why}{', going on' if before is not None else ''})")
    start = record.path(before) if before is not None else None
    try:
        until = min(began + seconds, course.budget.learning_until)
        measured_by = began + MEASURING * seconds
        mask, taken, fit_s = _learn(course, config, record.folder / name, start, measured_by, until)
    except InvalidMask as error:
        course.tell(f"  {candidate.name} is out: {error}")
        step_s[candidate.name] = math.inf
        return
    step_s[candidate.name] = fit_s / max(1, taken)
    score = scorer.score(mask)
    n_off, took_s = mask.n_off, clock() - began
    record.add(Run(candidate.name, name, taken, done + taken, took_s, score.neighbours, score.evidence, n_off))
    course.tell(
        f"  {taken} steps in {took_s:.0f} s, {n_off:,} weights OFF, neighbours kept {score.neighbours:+.3f}, "
        f"evidence {score.evidence:+.2f}"
    )


def _expect_measuring_s(candidate: Candidate, step_s: Mapping[str, float]) -> float:
    """How long the head's calibration is expected to take: it embeds crops, which is a part of what a step does."""
    crops = candidate.config.swav.crops
    of_a_step = CENTRE_CROPS / ((crops.n_big + crops.n_small) * candidate.config.batch_size)
    return of_a_step * EMBEDDING_OF_A_STEP * step_s[candidate.name]


def _learn(
    course: Course, config: Config, out: Path, start: Path | None, measured_by: float, until: float
) -> tuple[TaskMask, int, float]:
    """One run, cut short by the clock: the mask, the steps that were taken and their seconds.

    The head is measured on no more images after `measured_by`, and no step begins after `until`.
    """
    request = Request(
        course.spec, course.data, config, out, seed=course.seed, overwrite=True, workers=course.workers,
        command=course.command, start=start, only=course.only,
    )  # fmt: skip
    prepared = prepare(request)
    clock = course.budget.clock
    learner, first_step = build_learner(prepared, is_late=lambda: clock() > measured_by)
    began = told = clock()

    def on_step(n_done: int) -> None:
        nonlocal told
        now = clock()
        if now > until:
            learner.trainer.should_stop = True
        if now - told > TELL_EVERY_S:
            told = now
            course.tell(f"  step {n_done} of {config.steps}, {max(0.0, until - now):.0f} s left for this run")

    fitted = fit(prepared, learner, first_step, on_step)
    took = clock() - began
    mask = export_learned(prepared, learner, fitted.curve)
    assert mask is not None
    finish(prepared, learner, fitted, mask)
    return mask, len(fitted.curve.rows), took
