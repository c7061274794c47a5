"""Every setting of a run can be changed, to what it can be."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from smn_core.errors import InvalidArgument
from training.config import Config, override, parse_config
from training.recipes import RECIPES, find_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_comes_back_from_the_json_of_a_checkpoint(name):
    config = find_recipe(name)
    assert parse_config(json.loads(json.dumps(asdict(config)))) == config


def test_a_configuration_of_a_newer_version_is_refused_by_its_setting():
    with pytest.raises(InvalidArgument, match="'colour', which this version does not know"):
        parse_config({"name": "x", "colour": 1})


def test_epochs_may_be_parts_and_are_at_least_one_step():
    assert Config("x", epochs=0.5, batch_size=10).total_steps(100) == 5
    assert Config("x", epochs=0.001, batch_size=10).total_steps(100) == 1


@pytest.mark.parametrize("more", [{"epochs": 1e30}, {"epochs": 1e308}, {"steps": 10**30}])
def test_more_steps_than_any_run_takes_are_refused(more):
    with pytest.raises(InvalidArgument, match="give fewer epochs or steps"):
        Config("x", batch_size=10, **more).total_steps(1000)


def test_settings_of_every_depth_and_kind_can_be_changed():
    settings = ["steps=7", "lr=3", "swav.crops.big_px=64", "swav.crops.big_scale=[0.2,1.0]", "mask.density=0.5"]
    settings += ["mask.only=fc", "freeze_norm=true", "precision=bf16-mixed"]
    changed = override(find_recipe("tiny"), settings)
    assert (changed.steps, changed.lr, changed.swav.crops.big_px) == (7, 3, 64)
    assert changed.swav.crops.big_scale == (0.2, 1.0)
    assert (changed.mask.density, changed.mask.only, changed.freeze_norm) == (0.5, "fc", True)
    assert changed.precision == "bf16-mixed"


CANNOT = """
    steps  nothing=1  swav.nothing=1  lr.x=1  lr=fast  batch_size="8"  batch_size=0.5  freeze_norm=1  mask=1
    swav.crops.big_scale=0.5  swav.crops.big_scale=[1]  mask.share=0  mask.density=high  mask.density=[1]  steps=0
    steps=1.5  precision=int4  objective=nothing  batch_size=0  batch_size=true  lr=true  epochs=0  checkpoint_steps=0
"""


@pytest.mark.parametrize("setting", CANNOT.split())
def test_a_setting_that_cannot_be_is_refused(setting):
    with pytest.raises(InvalidArgument):
        override(find_recipe("tiny"), [setting])
