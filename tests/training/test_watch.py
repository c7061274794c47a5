"""What watches a run says what it sees, and lets it go on."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.training.builders import SWAV, World, config, run
from training import swav
from training.learner import Learner
from training.watch import Curve, Warn

UNIFORM = math.log(SWAV.prototypes)


@pytest.fixture
def learner(world: World) -> Learner:
    return Learner(world.backbone(), config(), 8)


def watched(learner: Learner, losses: list[float]) -> tuple[Warn, list[str]]:
    stuck, said = Warn(learner.objective.make_watch()), []
    trainer = SimpleNamespace(print=said.append)
    for loss in losses:
        stuck.on_train_batch_end(trainer, learner, {"loss": torch.tensor(loss)}, None, 0)
    return stuck, said


def test_a_loss_stuck_at_uniform_is_said_once_with_what_to_try(learner):
    stuck, said = watched(learner, [UNIFORM * 1.005] * 100)
    assert len(said) == 1
    assert "ln(K) = 2.773 for 30 steps" in said[0]
    for advice in ("swav.epsilon=0.03", "frozen", "queue", "The run goes on"):
        assert advice in said[0]
    assert stuck.message in said[0]


def test_a_loss_that_passes_uniform_or_is_elsewhere_is_not_stuck(learner):
    passing = [UNIFORM] * 29 + [UNIFORM * 1.1]
    assert watched(learner, passing * 3)[1] == []
    assert watched(learner, [UNIFORM * 0.9] * 100)[1] == []


def test_a_run_that_is_stuck_goes_on_and_tells_its_folder(world: World, tmp_path, monkeypatch):
    """A temperature far too high: every prediction is uniform."""
    monkeypatch.setattr(swav, "STUCK_AFTER_STEPS", 4)
    result = run(world, tmp_path / "m.smn", config(swav=replace(SWAV, temperature=50.0)))
    assert "nothing is learned" in result.warning
    assert result.final_loss == pytest.approx(UNIFORM, rel=0.01)
    assert "**Warning:** the loss has been at ln(K)" in (tmp_path / "m.run/README.md").read_text()
    assert result.out.exists()


def test_a_curve_survives_a_checkpoint(tmp_path):
    curve = Curve()
    curve.rows = [{"step": 1, "loss": 2.0, "lr": 0.5}, {"step": 2, "loss": 1.0, "lr": 0.2, "density": 0.9}]
    again = Curve()
    again.load_state_dict(curve.state_dict())
    again.write(tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text().split() == ["step,loss,lr,density", "1,2.0,0.5,", "2,1.0,0.2,0.9"]
