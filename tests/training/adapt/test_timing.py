"""Threads are chosen by the clock, and the time of a step is told in advance."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from smn_core.imageset import open_images
from tests.training.adapt.photos import Ticking
from tests.training.builders import World
from training.adapt.candidates import list_candidates
from training.adapt.timing import choose_threads, time_step
from training.forms import Form


def first(world: World):
    return next(c.config for c in list_candidates(300, 32, world.backbone().model) if c.name == "small-vit")


def test_a_step_takes_learning_and_reading_without_workers(world: World):
    images, config = open_images(world.data, "train"), first(world)
    smaller = replace(config, batch_size=10, swav=replace(config.swav, crops=replace(config.swav.crops, n_small=0)))
    form = Form("32-true", True, image_s=1.0)
    # Two crops of 32 px have 4/5 of the pixels of these and two of 16 px. On this clock 6 images are read in 1 s.
    seconds = time_step(form, config, smaller, images, world.backbone().preprocess, 0, Ticking(1.0))
    assert seconds == pytest.approx(10 * (0.8 + 1 / 6))


def test_as_many_threads_are_taken_as_a_step_is_fastest_with(world: World):
    told: list[str] = []
    torch.set_num_threads(2)
    assert choose_threads(world.spec(), first(world), torch.device("cpu"), told.append) == torch.get_num_threads()
    times = {int(n): float(s) for n, s in re.findall(r"(\d+): ([\d.]+) s", told[0])}
    assert set(times) == {1, 2}
    assert times[torch.get_num_threads()] == min(times.values())
