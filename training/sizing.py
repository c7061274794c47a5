"""Sizes for a small set: a batch, prototypes and steps of the head that so few images allow.

A recipe that fits is left as it is, so a run that could be made without this module is the same run with it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from smn_core.errors import InvalidData
from training.config import Config
from training.swav import SwavObjective

FEWEST_IMAGES = 30
HEAD_SHARE = 1 / 3
"""Part of a short run that is the head's: `small-vit` gives it 25 of 80 steps."""

BATCH, PROTOTYPES, HEAD_STEPS = "batch_size", "swav.prototypes", "head_steps"


def fit_to(config: Config, n_images: int, keep: Collection[str] = ()) -> tuple[Config, list[str]]:
    """Lower what `n_images` images do not allow: the batch, the prototypes, the steps that are for the head alone.

    Args:
        config: the recipe.
        n_images: the images that a run learns from.
        keep: names of settings that stay as they are, as in `--set NAME=VALUE`.

    Returns:
        The recipe that fits, and a remark for each setting that was lowered.

    Raises:
        InvalidData: something is to be lowered, and there are fewer than `FEWEST_IMAGES` images.
    """
    learns_by_swav = isinstance(config.make_objective(), SwavObjective)
    fitted, remarks = config, list[str]()
    if n_images < config.batch_size and BATCH not in keep:
        fitted = replace(fitted, batch_size=_power_of_two(n_images))
        remarks.append(_remark(n_images, BATCH, config.batch_size, fitted.batch_size))
    if learns_by_swav and n_images < config.swav.prototypes and PROTOTYPES not in keep:
        n_prototypes = max(2, _power_of_two(n_images))
        fitted = replace(fitted, swav=replace(config.swav, prototypes=n_prototypes))
        remarks.append(_remark(n_images, PROTOTYPES, config.swav.prototypes, n_prototypes))
    if remarks and n_images < FEWEST_IMAGES:
        raise InvalidData(
            f"{n_images} images are too few to learn from: give {FEWEST_IMAGES} or more, or choose the sizes yourself "
            f"(--set {BATCH}=..., --set {PROTOTYPES}=...)"
        )
    if n_images >= fitted.batch_size:  # else there is no step at all, which is refused later
        total = fitted.total_steps(n_images)
        if fitted.learns_mask and total <= config.head_steps and HEAD_STEPS not in keep:
            fitted = replace(fitted, head_steps=int(total * HEAD_SHARE))
            steps = "1 step" if total == 1 else f"{total} steps"
            remarks.append(
                f"{steps} in all: {HEAD_STEPS} is {fitted.head_steps} instead of {config.head_steps}, so that "
                "the mask learns too"
            )
    return fitted, remarks


def _power_of_two(n: int) -> int:
    """The largest power of two that is at most `n`, 1 for less."""
    return 1 << (max(1, n).bit_length() - 1)


def _remark(n_images: int, name: str, before: int, after: int) -> str:
    return f"{n_images} images: {name} is {after} instead of {before}"
