"""Candidates are ranked by how many of its neighbours an image keeps, and evidence against one keeps it out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.masks import random_mask
from smn_core.engine import Engine
from smn_core.imageset import open_images
from smn_core.maskfile import write_mask
from tests.training.builders import World
from training.adapt.score import BROKEN, Score, Scorer
from training.data import Subset
from training.evaluation.controls import make_all_on


@pytest.fixture(scope="module")
def scorer(world: World) -> Scorer:
    return Scorer(Engine(world.backbone(), slots=1), Subset(open_images(world.data, "train"), np.arange(32)))


def test_a_large_change_ranks_before_a_small_one_that_is_surer():
    assert Score(neighbours=0.11, evidence=0.8).value > Score(neighbours=0.03, evidence=0.9).value


@pytest.mark.parametrize("score", [Score(0.05, -0.1), Score(-0.02, 0.3), Score(-0.02, -0.1), BROKEN])
def test_a_mask_that_either_number_speaks_against_promises_nothing(score: Score):
    assert score.value < 0


def test_a_mask_that_changes_nothing_scores_nothing(scorer: Scorer, tmp_path: Path):
    mask = write_mask(make_all_on(scorer.engine.backbone), tmp_path / "nothing.smn")
    assert scorer.score(mask) == Score(0.0, 0.0)


def test_a_mask_of_noise_promises_nothing(scorer: Scorer, tmp_path: Path):
    backbone, rng = scorer.engine.backbone, np.random.default_rng(0)
    noise = random_mask(backbone.layout, 0.3, rng, backbone)
    assert scorer.score(write_mask(replace(noise, digest=None), tmp_path / "noise.smn")).value < 0


def test_a_minute_in_which_the_machine_is_busy_does_not_decide_how_long_an_image_takes(world: World, tmp_path: Path):
    now, step = 0.0, 6.4  # from one reading to the next, four views of 32 images: .05 s an image

    def clock() -> float:
        nonlocal now
        now += step
        return now

    images = Subset(open_images(world.data, "train"), np.arange(32))
    scorer = Scorer(Engine(world.backbone(), slots=1), images, clock)
    assert scorer.image_s == pytest.approx(0.05)
    step *= 20
    scorer.score(write_mask(make_all_on(scorer.engine.backbone), tmp_path / "nothing.smn"))
    step /= 20
    scorer.score(write_mask(make_all_on(scorer.engine.backbone), tmp_path / "nothing.smn"))
    assert scorer.image_s == pytest.approx(0.05)
