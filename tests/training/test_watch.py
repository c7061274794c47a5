"""What watches a run says what it sees, and lets it go on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from tests.training.builders import SWAV, Stopped, World, config, run
from training import swav
from training.checkpoints import read_checkpoint
from training.learner import Learner
from training.request import Request
from training.run import train
from training.swav import StuckAtUniform
from training.watch import Curve, LogSteps, SaveEarly, Warn

UNIFORM = math.log(SWAV.prototypes)


class Steps(pl.Trainer):
    """A trainer at a step, which keeps what it is asked to print, and the steps at which it is asked to save."""

    global_step, world_size = 0, 1

    def __init__(self) -> None:
        self.said, self.saved = list[str](), list[int]()

    def print(self, *texts: str) -> None:
        self.said += texts

    def save_checkpoint(self, *_: object) -> None:
        self.saved.append(self.global_step)


@pytest.fixture
def learner(world: World) -> Learner:
    return Learner(world.backbone(), config(), 8)


def watched(learner: Learner, losses: list[float]) -> tuple[Warn, list[str]]:
    stuck, trainer = Warn(learner.objective.make_watch()), Steps()
    for loss in losses:
        stuck.on_train_batch_end(trainer, learner, {"loss": torch.tensor(loss)}, None, 0)
    return stuck, trainer.said


@pytest.mark.parametrize("times", [0.995, 1.005, 1.1])
def test_a_loss_that_stays_at_uniform_or_above_is_said_once_with_what_to_try(times, learner):
    stuck, said = watched(learner, [UNIFORM * times] * 100)
    assert len(said) == 1
    assert "not below ln(K) = 2.773, for 30 steps" in said[0]
    for advice in ("swav.epsilon=0.03", "frozen", "queue", "The run goes on"):
        assert advice in said[0]
    assert stuck.message in said[0]


def test_a_collapse_above_uniform_is_seen():
    """The loss of a mask that took 10 points of kNN: flat at 4.342 with 64 prototypes, ln(K) = 4.159."""
    watch = StuckAtUniform(64)
    said = [watch(4.342 + 0.01 * math.sin(step)) for step in range(60)]
    assert [step for step, text in enumerate(said, 1) if text] == [30]
    assert "4.3" in said[29]
    assert "ln(K) = 4.159" in said[29]


def test_a_loss_that_passes_below_uniform_or_is_below_it_is_not_stuck(learner):
    passing = [UNIFORM * 1.1] * 29 + [UNIFORM * 0.98]
    assert watched(learner, passing * 3)[1] == []
    assert watched(learner, [UNIFORM * 0.9] * 100)[1] == []


def test_a_head_that_comes_down_from_above_is_not_stuck_until_it_stays(learner):
    falling = [UNIFORM * (1.6 - 0.01 * step) for step in range(60)]
    assert watched(learner, falling)[1] == []
    assert len(watched(learner, falling + [UNIFORM] * 60)[1]) == 1


def logged(learner: Learner, seconds_a_step: float, first: int = 0) -> list[str]:
    """What is written of a run of the learner whose steps take so long, by a clock that is turned by hand."""
    now, said = [0.0], []
    log = LogSteps(said.append, lambda: now[0])
    trainer = Steps()
    trainer.global_step = first
    log.on_train_start(trainer, learner)
    while trainer.global_step < learner.total_steps:
        now[0] += seconds_a_step
        trainer.global_step += 1
        log.on_train_batch_end(trainer, learner, {"loss": torch.tensor(2.5)}, None, 0)
    log.on_train_end(trainer, learner)
    return said


def test_a_log_has_a_line_at_the_start_and_at_the_end_and_one_each_ten_seconds_between(world: World):
    learner = Learner(world.backbone(), config(), 100)
    assert [line.split(",")[0] for line in logged(learner, 1.0)] == [
        "step 0 of 100; a line follows each 10 s at most",
        *(f"step {step} of 100" for step in range(10, 101, 10)),
    ]
    assert logged(learner, 1.0, first=40)[1] == "step 50 of 100, loss 2.5000, density 1.000000, 50 s left"
    assert len(logged(learner, 0.01)) == 2
    assert logged(learner, 0.01)[-1] == "step 100 of 100, loss 2.5000, density 1.000000, 1 s"
    assert len(logged(learner, 60.0)) == 101


@pytest.mark.parametrize(("seconds_a_step", "saved_after"), [(1.0, 5), (20.0, 3), (100.0, 1)])
def test_a_first_checkpoint_is_saved_after_a_few_steps_or_a_minute(seconds_a_step, saved_after, learner, tmp_path):
    now, trainer = [0.0], Steps()
    early = SaveEarly(tmp_path / "last.ckpt", lambda: now[0])
    trainer.global_step = 2
    early.on_train_start(trainer, learner)
    for _ in range(10):
        now[0] += seconds_a_step
        trainer.global_step += 1
        early.on_train_batch_end(trainer, learner, {}, None, 0)
    assert trainer.saved == [2 + saved_after]


def test_a_run_that_dies_after_a_few_steps_has_a_checkpoint(world: World, tmp_path):
    def die(step: int) -> None:
        if step == 7:
            raise Stopped

    with pytest.raises(Stopped):
        train(Request(world.spec(), str(world.data), config(), tmp_path / "m.smn", workers=0), die)
    assert read_checkpoint(tmp_path / "m.run/last.ckpt")["global_step"] == 5


def test_a_run_that_is_stuck_goes_on_and_tells_its_folder(world: World, tmp_path, monkeypatch):
    """A temperature far too high: every prediction is uniform."""
    monkeypatch.setattr(swav, "STUCK_AFTER_STEPS", 4)
    result = run(world, tmp_path / "m.smn", config(swav=replace(SWAV, temperature=50.0)))
    assert "nothing is learned" in result.warning
    assert result.final_loss == pytest.approx(UNIFORM, rel=0.01)
    assert "**Warning:** the loss has stayed at 2.77" in (tmp_path / "m.run/README.md").read_text()
    assert result.out.exists()


def test_a_curve_survives_a_checkpoint(tmp_path):
    curve = Curve()
    curve.rows = [{"step": 1, "loss": 2.0, "lr": 0.5}, {"step": 2, "loss": 1.0, "lr": 0.2, "density": 0.9}]
    again = Curve()
    again.load_state_dict(curve.state_dict())
    again.write(tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text().split() == ["step,loss,lr,density", "1,2.0,0.5,", "2,1.0,0.2,0.9"]
