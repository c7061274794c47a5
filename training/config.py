"""The settings of a run, the table of objectives, and how a command line changes single settings."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from smn_core.errors import InvalidArgument
from training.masking import MaskRule
from training.objective import Objective
from training.supervised import SupervisedObjective
from training.swav import SwavConfig, SwavObjective, require_scale

PRECISIONS: dict[str, torch.dtype] = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
PLAIN, AUTO = "32-true", "auto"
"""What every machine can, and: whichever form of a step is fastest here (`training/forms.py`)."""

LARGEST = torch.finfo(torch.float32).max
"""The weights are float32, and a step multiplies them by the rates."""
MOST_STEPS = 10**12
"""At a thousand steps a second a run would take thirty years."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, except its data, backbone and seed.

    `objective` is a name in `OBJECTIVES`. `lr` is for the scores, or for all weights in fine-tuning; `head_lr` is for
    the objective's head. `lr_per_tensor` divides the gradient of every tensor by the root mean square of its first one.
    `precision` is autocast's; bf16-mixed is faster on processors with bfloat16 instructions (with
    `fused_attention=false`) and many times slower on others. `auto` times a step of each, and settles
    `fused_attention` too. `freeze_norm` keeps the norms' running statistics;
    `recentre_norm` is for networks whose BatchNorm is folded away (`training/recentre.py`).
    A run takes `epochs` of the data, or `steps` where that is set. During `head_steps` only the head learns.
    """

    name: str
    objective: str = "swav"
    epochs: float = 100
    steps: int | None = None
    batch_size: int = 64
    lr: float = 50.0
    lr_per_tensor: bool = False
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup: float = 0.0
    head_lr: float = 0.15
    head_weight_decay: float = 1e-6
    head_steps: int = 0
    mask: MaskRule = MaskRule()
    swav: SwavConfig = SwavConfig()
    masked_head: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)
    freeze_norm: bool = False
    recentre_norm: bool = False
    precision: str = AUTO
    fused_attention: bool = True
    checkpoint_steps: int = 50

    def __post_init__(self) -> None:
        for name, value, known in (
            ("objective", self.objective, OBJECTIVES),
            ("precision", self.precision, (*PRECISIONS, AUTO)),
        ):
            if value not in known:
                raise InvalidArgument(f"unknown {name} {value!r}: choose {', '.join(known)}")
        for name, number in (
            ("batch_size", self.batch_size),
            ("checkpoint_steps", self.checkpoint_steps),
            ("steps", 1 if self.steps is None else self.steps),
        ):
            if number < 1:
                raise InvalidArgument(f"{name} is {number}: at least 1")
        if not 0 < self.epochs < math.inf:
            raise InvalidArgument(f"epochs is {self.epochs}: more than 0, and finite")
        if self.steps is not None and (isinstance(self.steps, bool) or not isinstance(self.steps, int)):
            raise InvalidArgument(f"steps is {self.steps}: a whole number")
        for name in ("lr", "head_lr", "weight_decay", "head_weight_decay", "head_steps"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise InvalidArgument(f"{name} is {getattr(self, name)}: not below 0, and a float32")
        if not 0 <= self.momentum < 1 or not 0 <= self.warmup <= 1:
            raise InvalidArgument(f"momentum {self.momentum} must be in [0, 1), warmup {self.warmup} in [0, 1]")
        require_scale("crop_scale", self.crop_scale)
        if self.recentre_norm and (self.freeze_norm or not self.learns_mask):
            raise InvalidArgument("recentre_norm=true is for masks, and without freeze_norm")

    @property
    def learns_mask(self) -> bool:
        """Whether the run learns a mask; else it learns all weights."""
        return OBJECTIVES[self.objective].learns_mask

    def make_objective(self) -> Objective[Any]:
        """What the run learns by, with the settings of this recipe."""
        return OBJECTIVES[self.objective].make(self)

    def total_steps(self, n_images: int) -> int:
        """The optimiser steps of a run on `n_images` images.

        Raises:
            InvalidArgument: more than any run takes.
        """
        steps = self.steps if self.steps is not None else self.epochs * (n_images // self.batch_size)
        if steps > MOST_STEPS:
            raise InvalidArgument(f"{steps:.2g} steps: {MOST_STEPS:,} at most; give fewer epochs or steps")
        return max(1, round(steps))


@dataclass(frozen=True)
class Learning:
    """What the name of an objective means: how the objective is made of a recipe, and what it moves."""

    make: Callable[[Config], Objective[Any]]
    learns_mask: bool


OBJECTIVES: dict[str, Learning] = {
    "swav": Learning(SwavObjective, learns_mask=True),
    "supervised": Learning(SupervisedObjective, learns_mask=True),
    "finetune": Learning(SupervisedObjective, learns_mask=False),
    "swav-finetune": Learning(SwavObjective, learns_mask=False),
}
MASKS = tuple(name for name, learning in OBJECTIVES.items() if learning.learns_mask)
"""Names of the objectives that learn a mask."""


def parse_config(table: dict[str, Any]) -> Config:
    """The configuration from its `dataclasses.asdict` after JSON, as checkpoints have it.

    Raises:
        InvalidArgument: it has a setting that this version does not know.
    """
    return cast("Config", _from_table(Config(""), table))


def _from_table(default: Any, table: dict[str, Any]) -> Any:
    """`default` with the values of a table. A list becomes a tuple where the default is one."""
    known = {f.name for f in dataclasses.fields(default)}
    if unknown := sorted(set(table) - known):
        raise InvalidArgument(f"a recipe with the setting {unknown[0]!r}, which this version does not know")
    values = {}
    for name, value in table.items():
        present = getattr(default, name)
        if dataclasses.is_dataclass(present):
            values[name] = _from_table(present, value)
        else:
            values[name] = tuple(value) if isinstance(present, tuple) else value
    return dataclasses.replace(default, **values)


def override(config: Config, settings: list[str]) -> Config:
    """Change single settings: `["steps=100", "mask.share=0.5", "swav.crops.big_px=96"]`; values are JSON.

    Raises:
        InvalidArgument: no such setting, or a value of another kind.
    """
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals:
            raise InvalidArgument(f"--set {text!r}: write NAME=VALUE")
        config = _replace(config, path.split("."), value, text)
    return config


def _replace(config: Any, path: list[str], value: str, text: str) -> Any:
    names = [f.name for f in dataclasses.fields(config)]
    if path[0] not in names:
        raise InvalidArgument(f"--set {text!r}: no setting {path[0]!r}; there are {', '.join(names)}")
    present = getattr(config, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(present):
            raise InvalidArgument(f"--set {text!r}: {path[0]} has no parts")
        return dataclasses.replace(config, **{path[0]: _replace(present, path[1:], value, text)})
    try:
        return dataclasses.replace(config, **{path[0]: _parse(present, value, text)})
    except TypeError as error:  # a setting that may be null is checked where it is compared
        raise InvalidArgument(f"--set {text!r}: {error}") from error


def _parse(present: Any, value: str, text: str) -> Any:
    if isinstance(present, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise InvalidArgument(f"--set {text!r}: {value!r} is not a number, true, false, null or list") from error
    if isinstance(present, tuple):
        parsed = tuple(parsed) if isinstance(parsed, list) and len(parsed) == len(present) else parsed
    if present is not None and not _like(parsed, present):
        raise InvalidArgument(f"--set {text!r}: expected something like {present!r}")
    return parsed


def _like(value: Any, present: Any) -> bool:
    """Whether a value may replace the present one. A whole number may replace a fraction; a bool only a bool."""
    if isinstance(value, bool) or isinstance(present, bool):
        return isinstance(value, bool) and isinstance(present, bool)
    return isinstance(value, (int, float) if isinstance(present, float) else type(present))
