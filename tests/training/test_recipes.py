"""Recipes are whole and documented."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from training.recipes import RECIPES, find_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_found_by_its_name_and_gives_its_command(name):
    assert find_recipe(name).name == name
    assert f"--recipe {name}" in RECIPES[name].__doc__
    json.dumps(asdict(find_recipe(name)))


def test_the_papers_step_count_does_not_depend_on_the_set():
    assert find_recipe("resnet50-swav").total_steps(10_000) == 117_187
    assert find_recipe("resnet-supervised").total_steps(6400) == 150 * 100
