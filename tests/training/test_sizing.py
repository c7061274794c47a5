"""A recipe is fitted to a small set, and left as it is where it fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smn_core.errors import InvalidData
from training.recipes import RECIPES, find_recipe
from training.sizing import FEWEST_IMAGES, fit_to


@pytest.mark.parametrize("n_images", [30, 38, 63, 100, 300, 499])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_a_small_set_with_steps_for_the_mask(name, n_images):
    fitted, remarks = fit_to(find_recipe(name), n_images)
    assert fitted.batch_size <= n_images
    assert fitted.head_steps < fitted.total_steps(n_images)
    fitted.make_objective().require_images(n_images)
    assert (fitted == find_recipe(name)) == (not remarks)
    assert fit_to(fitted, n_images) == (fitted, [])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_fits_is_left_as_it_is(name):
    assert fit_to(find_recipe(name), 2000) == (find_recipe(name), [])


def test_what_was_lowered_is_said_one_setting_a_line():
    fitted, remarks = fit_to(find_recipe("small-vit-64px"), 38)
    assert (fitted.batch_size, fitted.swav.prototypes, fitted.head_steps) == (32, 32, 40)
    assert remarks == [
        "38 images: batch_size is 32 instead of 64",
        "38 images: swav.prototypes is 32 instead of 64",
    ]


@pytest.mark.parametrize(("epochs", "steps", "head"), [(1, 9, 3), (0.1, 1, 0), (2, 18, 6), (3, 27, 25)])
def test_a_run_whose_every_step_would_be_the_heads_gives_two_thirds_to_the_mask(epochs, steps, head):
    fitted, remarks = fit_to(replace(find_recipe("small-vit"), steps=None, epochs=epochs), 300)
    assert (fitted.total_steps(300), fitted.head_steps) == (steps, head)
    assert len(remarks) == (head < 25)


def test_what_the_user_chose_himself_stays():
    recipe = find_recipe("small-vit-64px")
    keep = ("batch_size", "swav.prototypes", "head_steps")
    assert fit_to(recipe, 38, keep) == (recipe, [])
    assert fit_to(recipe, 38, keep[:1])[0].swav.prototypes == 32
    assert fit_to(replace(recipe, steps=10), 380, keep)[0].head_steps == 40


def test_below_thirty_images_is_one_sentence():
    assert fit_to(find_recipe("small-vit"), FEWEST_IMAGES)[0].batch_size == 16
    with pytest.raises(InvalidData, match="29 images are too few to learn from: give 30 or more") as refused:
        fit_to(find_recipe("small-vit"), 29)
    assert len(str(refused.value).splitlines()) == 1


def test_labels_need_no_prototypes():
    fitted, remarks = fit_to(find_recipe("small-vit-supervised"), 40)
    assert (fitted, remarks) == (find_recipe("small-vit-supervised"), [])
