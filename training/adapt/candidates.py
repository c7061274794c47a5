"""What is tried: recipes that differ in resolution, scale of crops, flips and rate, sized by images and by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from training.config import Config
from training.recipes import find_recipe

RECIPES_PX = 224
"""The side of images that the recipes below were written for."""
CANDIDATES = (
    ("small-vit-64px", "small images, more of them"),
    ("small-vit", "the resolution that serves, large and small crops"),
    ("small-vit-aerial", "small images, half of them upside down"),
    ("small-vit-gentle", "the resolution that serves, mild crops, few flips"),
)
"""Recipes and what is special about them; where time is short the first ones are tried."""

FEWEST_STEPS = 12
"""Fewer teach nothing that the verdict could see."""
MOST_PASSES = 60
"""Over the images; a small set is learned by heart soon."""
MOST_RECIPES = 1.5
"""Steps of all runs of a candidate together, in lengths of its recipe."""
HEAD_SHARE = 0.25
FASTEST = 4.0
"""Times the recipe's rate that a short run may have."""
SMALLEST_BATCH, FEWEST_PROTOTYPES = 8, 8


@dataclass(frozen=True)
class Candidate:
    """A recipe under its name, and in words what is special about it."""

    name: str
    config: Config
    why: str

    @property
    def most_steps(self) -> int:
        """Steps of all its runs together."""
        return self.config.steps or FEWEST_STEPS


def list_candidates(
    n_images: int, side_px: int, model: nn.Module, names: Sequence[tuple[str, str]] = CANDIDATES
) -> list[Candidate]:
    """All candidates, fitted to the number of images to learn from and to the side of what the model takes."""
    multiple = find_multiple(model)
    return [Candidate(name, _fit(find_recipe(name), n_images, side_px, multiple), why) for name, why in names]


def find_multiple(model: nn.Module) -> int:
    """The sides of crops are multiples of it: a ViT's patch, the stride of a convolutional network."""
    if isinstance(model, VisionTransformer):
        return int(model.patch_embed.patch_size[0])
    return 32


def _fit(recipe: Config, n_images: int, side_px: int, multiple: int) -> Config:
    """Crops in proportion to the side, batch and prototypes no larger than the set allows, steps bounded by passes."""
    crops = recipe.swav.crops
    crops = replace(
        crops,
        big_px=_scale(crops.big_px, side_px, multiple),
        small_px=_scale(crops.small_px, side_px, multiple),
    )
    batch = min(recipe.batch_size, max(SMALLEST_BATCH, n_images // 3))
    prototypes = min(recipe.swav.prototypes, max(FEWEST_PROTOTYPES, n_images // 4))
    steps = min(round(MOST_RECIPES * (recipe.steps or 0)), MOST_PASSES * n_images // batch)
    return replace(
        recipe,
        steps=max(FEWEST_STEPS, steps),
        batch_size=batch,
        head_steps=recipe.head_steps,
        swav=replace(recipe.swav, crops=crops, prototypes=prototypes),
    )


def _scale(px: int, side_px: int, multiple: int) -> int:
    return max(multiple, round(px * side_px / RECIPES_PX / multiple) * multiple)


def size(candidate: Candidate, n_steps: int, *, goes_on: bool) -> Config:
    """The recipe for a run of `n_steps`. One that goes on from another has a trained head already.

    A run with fewer steps for the mask than the recipe has moves the scores as much by a higher rate, within
    `FASTEST`. No checkpoint comes in between: such runs are short, and each ends with one.
    """
    recipe, recipes_steps = candidate.config, candidate.most_steps / MOST_RECIPES
    share = max(HEAD_SHARE, recipe.head_steps / recipes_steps)
    head = 0 if goes_on else min(recipe.head_steps, max(1, round(min(share, 0.7) * n_steps)))
    faster = (recipes_steps - recipe.head_steps) / max(1, n_steps - head)
    lr = recipe.lr * min(FASTEST, max(1.0, faster))
    return replace(recipe, steps=n_steps, head_steps=head, lr=lr, checkpoint_steps=n_steps + 1)
