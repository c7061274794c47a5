"""What is tried fits the images, the model and the time."""

from __future__ import annotations

import pytest

from tests.training.builders import World
from training.adapt.candidates import CANDIDATES, FEWEST_STEPS, list_candidates, size


@pytest.mark.parametrize("n_images", [24, 32, 240, 2000])
def test_candidates_fit_the_number_of_images(n_images: int, world: World):
    found = list_candidates(n_images, 32, world.backbone().model)
    assert [candidate.name for candidate in found] == [name for name, _ in CANDIDATES]
    for candidate in found:
        config = candidate.config
        config.make_objective().require_images(n_images)
        assert config.batch_size <= n_images
        assert FEWEST_STEPS <= candidate.most_steps <= max(FEWEST_STEPS, 60 * n_images / config.batch_size)


def test_crops_keep_their_proportion_and_are_multiples_of_the_patch(world: World):
    sides = {
        c.name: (c.config.swav.crops.big_px, c.config.swav.crops.small_px)
        for c in list_candidates(300, 224, world.backbone().model)
    }
    assert sides["small-vit"] == (224, 96)
    assert sides["small-vit-64px"] == (64, 32)
    small = list_candidates(300, 32, world.backbone().model)
    assert {c.config.swav.crops.big_px for c in small} == {32, 16}


def test_the_recipe_of_cheap_steps_is_tried_first_and_the_resolution_that_serves_next():
    assert [name for name, _ in CANDIDATES[:2]] == ["small-vit-64px", "small-vit"]


def test_a_run_that_goes_on_trains_no_head_alone(world: World):
    first = list_candidates(300, 32, world.backbone().model)[0]
    assert 0 < size(first, 20, goes_on=False).head_steps < 20
    assert size(first, 20, goes_on=True).head_steps == 0
    assert size(first, 20, goes_on=True).steps == 20


def test_a_short_run_has_a_higher_rate_within_bounds(world: World):
    first = next(c for c in list_candidates(300, 32, world.backbone().model) if c.name == "small-vit")
    rates = [size(first, n, goes_on=False).lr / first.config.lr for n in (first.most_steps, 40, 12)]
    assert rates[0] == 1
    assert rates[0] < rates[1] < rates[2] == 4
