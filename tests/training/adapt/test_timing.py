"""Numbers and attention are chosen by the clock."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from smn_core.imageset import open_images
from smn_core.precision import slow_on_cpu
from tests.training.adapt.photos import Ticking
from tests.training.builders import World
from training.adapt.candidates import list_candidates
from training.adapt.timing import Form, choose_form, choose_threads, time_step
from training.config import PRECISIONS


def first(world: World):
    return next(c.config for c in list_candidates(300, 32, world.backbone().model) if c.name == "small-vit")


def test_the_fastest_form_that_agrees_is_taken_and_told(world: World):
    told: list[str] = []
    form = choose_form(world.spec(), first(world), 60.0, told.append)
    assert len(told) == 1
    times = {
        name: float(s) for name, s in re.findall(r"(32-true|bf16-mixed)(?:, fused attention)? ([\d.]+) s", told[0])
    }
    device = world.backbone().device
    expected = {name for name, dtype in PRECISIONS.items() if name != "16-mixed" and not slow_on_cpu(dtype, device)}
    assert set(times) == expected
    assert form.image_s > 0
    assert form.apply(first(world)).precision == form.precision
    assert told[0].endswith(f"taken: {form.precision}{', fused attention' if form.fused_attention else ''}")


def test_after_its_time_no_more_than_the_first_two_forms_are_timed(world: World):
    told: list[str] = []
    choose_form(world.spec(), first(world), 0.0, told.append, Ticking(1.0))
    timed = told[0].split(": ", 1)[1].split("; taken")[0]
    assert timed.startswith("32-true, fused attention")
    assert timed.count(" s") <= 2


def test_of_equal_times_the_plainest_form_is_kept(world: World):
    form = choose_form(world.spec(), first(world), 1000.0, lambda _: None, Ticking(1.0))
    assert (form.precision, form.fused_attention) == ("32-true", True)


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
