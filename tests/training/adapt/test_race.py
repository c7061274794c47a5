"""A race: short runs of all candidates, then the best goes on, within the time."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from smn_core.engine import Engine
from smn_core.imageset import open_images
from tests.training.adapt.photos import Ticking
from tests.training.builders import World
from training.adapt.budget import ENDING, Budget
from training.adapt.candidates import Candidate, list_candidates
from training.adapt.race import Course, race, share_out
from training.adapt.record import Record
from training.adapt.score import Score, Scorer
from training.data import Subset
from training.recipes import tiny

NAMES = (("bold", "first"), ("small-vit-gentle", "second"))
N_IMAGES = 32
EXPECTED_STEP_S = 0.15
"""Less than a tick: every run is cut short by the clock."""


@dataclass
class Track:
    """A race over some digits, on a clock that goes on by `tick_s` at every look."""

    world: World
    folder: Path
    tick_s: float = 0.3
    whole_s: float = 40.0
    told: list[str] = field(default_factory=list)
    plan: str = "one"

    def run(self, names=NAMES, tell=None, score=None) -> Record:
        self.folder.mkdir(exist_ok=True)
        clock = Ticking(self.tick_s)
        images = Subset(open_images(self.world.data, "train"), np.arange(N_IMAGES))
        backbone = self.world.backbone()
        candidates = list_candidates(N_IMAGES, 32, backbone.model, names)
        self.budget = Budget(self.whole_s, clock(), clock)
        course = Course(
            self.world.spec(), str(self.world.data), tuple(range(N_IMAGES)), 0, 0, ["smn"], self.budget,
            tell or self.told.append,
        )  # fmt: skip
        record = Record.open(self.folder, {"plan": self.plan})
        step_s = {candidate.name: EXPECTED_STEP_S for candidate in candidates}
        scorer = Scorer(Engine(backbone, slots=1), images, clock)
        if score is not None:
            scorer.score = score
        race(course, candidates, step_s, record, scorer)
        return record


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Track, Record]:
    """A race of two candidates that ended."""
    track = Track(world, tmp_path_factory.mktemp("race") / "race.run")
    return track, track.run()


def test_every_candidate_runs_shortly_and_the_best_goes_on(finished: tuple[Track, Record]):
    _, record = finished
    assert [run.candidate for run in record.runs[:2]] == ["bold", "small-vit-gentle"]
    went_on = record.runs[2]
    before = next(run for run in record.runs[:2] if run.candidate == went_on.candidate)
    assert before.score == max(run.score for run in record.runs[:2])
    assert went_on.total_steps == before.total_steps + went_on.steps
    assert record.path(went_on).exists()


def test_the_best_run_has_the_highest_score_of_those_that_switched_a_weight_off(finished: tuple[Track, Record]):
    _, record = finished
    flipped = [run for run in record.runs if run.n_off]
    assert flipped
    assert record.best == max(flipped, key=lambda run: run.score)


def test_it_ends_when_the_learning_time_does(finished: tuple[Track, Record]):
    track, _ = finished
    one_run_s = 10 * track.tick_s  # a step, the score, and what a run looks at the clock for at its end
    assert track.budget.spent_s <= (1 - ENDING) * track.whole_s + one_run_s


def test_what_is_finished_is_not_run_again_under_the_same_plan(finished: tuple[Track, Record]):
    track, record = finished
    times = [record.path(run).stat().st_mtime_ns for run in record.runs]
    again = Track(track.world, track.folder, whole_s=1.0)  # no time to go on
    assert again.run().runs == record.runs
    assert [record.path(run).stat().st_mtime_ns for run in record.runs] == times
    assert any("finished already" in line for line in again.told)


def test_with_little_time_only_the_first_candidate_runs_and_is_cut_short(world: World, tmp_path: Path):
    record = Track(world, tmp_path / "race.run", tick_s=2.0, whole_s=30.0).run()
    assert {run.candidate for run in record.runs} == {"bold"}
    assert record.runs[0].steps < 12


def test_where_nothing_promises_anything_the_next_candidate_has_the_rest_of_the_time(world: World, tmp_path: Path):
    """At first there is time for one alone; it comes out worse than nothing."""
    track = Track(world, tmp_path / "race.run", whole_s=26.0)
    record = track.run(score=lambda _: Score(-1.0, -1.0))
    assert [run.candidate for run in record.runs] == ["bold", "small-vit-gentle"]
    assert "going on" not in "".join(track.told)


def test_another_plan_begins_anew(finished: tuple[Track, Record], tmp_path: Path):
    track, record = finished
    copied = Path(shutil.copytree(track.folder, tmp_path / "race.run"))
    assert Record.open(copied, {"plan": "one"}).runs == record.runs
    assert not Record.open(copied, {"plan": "another"}).runs


def test_a_record_that_was_cut_off_begins_anew(tmp_path: Path):
    (tmp_path / "race.json").write_text('{"plan": {"plan": "one"}, "runs": [')
    assert not Record.open(tmp_path, {"plan": "one"}).runs


def test_ctrl_c_in_the_second_run_keeps_the_first(world: World, tmp_path: Path):
    track = Track(world, tmp_path / "race.run")

    def interrupt(line: str) -> None:
        if line.startswith("small-vit-gentle"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        track.run(tell=interrupt)
    assert [run.candidate for run in Record.open(track.folder, {"plan": "one"}).runs] == ["bold"]


@pytest.mark.parametrize(
    ("heat_s", "entered"),
    [
        (400, {"cheap", "dear", "cheap-too"}),
        (100, {"cheap", "cheap-too"}),
        (20, {"cheap"}),
        (5, {"cheap"}),
    ],
)
def test_a_heat_has_what_it_needs_to_tell_something_and_the_rest_is_shared(heat_s, entered):
    """At 1 s a step 24 steps and a start take 26 s, at 10 s they take 242 s: who cannot have them does not enter."""
    step_s = {"cheap": 1.0, "dear": 10.0, "cheap-too": 1.0}
    candidates = [Candidate(name, tiny(), "") for name in step_s]
    found = share_out(candidates, step_s, heat_s)
    assert set(found) == entered
    assert sum(found.values()) == pytest.approx(heat_s)
    for name, share in found.items():
        assert share >= min(heat_s, 24 * step_s[name] + 2)
    cheap = [share for name, share in found.items() if name != "dear"]
    assert max(cheap) == pytest.approx(min(cheap))


def test_no_candidate_begins_after_the_learning_time(world: World, tmp_path):
    track = Track(world, tmp_path / "race.run", tick_s=30.0)
    assert track.run().runs == []
    assert [line for line in track.told if line.startswith("no time is left for bold")]
