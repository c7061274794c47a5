"""Precision and attention of a step are chosen by the clock."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from smn_core.maskfile import read_mask
from smn_core.precision import slow_on_cpu
from tests.training.adapt.photos import Ticking
from tests.training.builders import World
from training.adapt.candidates import list_candidates
from training.config import AUTO, PRECISIONS
from training.forms import WORTH_TIMING, choose_form, settle_form
from training.recipes import find_recipe
from training.request import Request


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


def open_request(world: World, tmp_path, steps: int, objective: str = "swav"):
    """A request of so many steps that leaves the form open."""
    recipe = replace(find_recipe("tiny"), precision=AUTO, steps=steps, objective=objective)
    return Request(world.spec(), str(world.data), recipe, tmp_path / "m.smn", workers=0)


@pytest.mark.parametrize("objective", ["swav", "supervised"])
def test_a_run_that_leaves_the_form_open_gets_one_that_was_timed(world: World, tmp_path, objective):
    request, told = settle_form(open_request(world, tmp_path, WORTH_TIMING, objective), 320, None, 1)
    assert request.config.precision in PRECISIONS
    assert f"taken: {request.config.precision}" in told


@pytest.mark.parametrize(("steps", "world_size"), [(WORTH_TIMING - 1, 1), (WORTH_TIMING, 2)])
def test_a_short_run_and_one_of_several_processes_are_float32(world: World, tmp_path, steps, world_size):
    request, told = settle_form(open_request(world, tmp_path, steps), 320, None, world_size)
    assert (request.config.precision, told) == ("32-true", "")


def test_a_form_that_is_said_is_kept(world: World, tmp_path):
    asked = open_request(world, tmp_path, 1000)
    asked = replace(asked, config=replace(asked.config, precision="bf16-mixed"))
    assert settle_form(asked, 320, None, 1) == (asked, "")


def test_a_run_goes_on_in_the_form_that_it_began_with(world: World, tmp_path, smn_run):
    """The mask and its checkpoint say the form; a resumed run takes it from there, whatever the clock says now."""
    out = tmp_path / "m.smn"
    words = ["train", "--data", world.data, "--out", out, *world.flags(), "--workers", 0, "--threads", 1]
    words += ["--recipe", "tiny", "--set", "steps=4", "--set", "head_steps=1"]
    ran = smn_run(*words, "--set", "precision=bf16-mixed", "--set", "fused_attention=false")
    assert ran.code == 0, ran.err
    assert json.loads(read_mask(out).metadata["recipe"])["precision"] == "bf16-mixed"
    request, told = settle_form(open_request(world, tmp_path, 1000), 320, tmp_path / "m.run" / "last.ckpt", 1)
    assert (request.config.precision, request.config.fused_attention, told) == ("bf16-mixed", False, "")
