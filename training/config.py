"""Everything that decides a run but its data, backbone and seed; and how a command line changes single settings."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch

from smn_core.errors import InvalidArgument
from training.masking import MaskRule
from training.swav import SwavConfig, require_scale

Objective = Literal["swav", "supervised", "finetune", "swav-finetune"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
MASKS: tuple[Objective, ...] = ("swav", "supervised")
"""Objectives that learn a mask; the others learn all weights."""
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: dict[Precision, torch.dtype] = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


@dataclass(frozen=True)
class Config:
    """Everything that decides a run but its data, backbone and seed.

    `lr` moves the scores (or all weights, for the two fine-tuning objectives), `head_lr` what is thrown away.
    `lr_per_tensor` divides the gradient of every tensor by its root mean square at the first step that uses it.
    `precision` is autocast's; bf16-mixed is several times faster on processors with bfloat16 instructions (with
    `fused_attention=false`) and many times slower on others.
    `recentre_norm` is for networks whose BatchNorm is folded away (`training/recentre.py`), `freeze_norm` for none.
    Steps are `epochs` of the data; `steps`, where set, overrides them. During `head_steps` only the head learns.
    """

    name: str
    objective: Objective = "swav"
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
    precision: Precision = "32-true"
    fused_attention: bool = True
    checkpoint_steps: int = 50

    def __post_init__(self) -> None:
        for name, value, known in (
            ("objective", self.objective, OBJECTIVES),
            ("precision", self.precision, PRECISIONS),
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
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidArgument(f"{name} is {getattr(self, name)}: not below 0, and finite")
        if not 0 <= self.momentum < 1 or not 0 <= self.warmup <= 1:
            raise InvalidArgument(f"momentum {self.momentum} must be in [0, 1), warmup {self.warmup} in [0, 1]")
        require_scale("crop_scale", self.crop_scale)
        if self.recentre_norm and (self.freeze_norm or self.objective not in MASKS):
            raise InvalidArgument("recentre_norm=true is for masks, and without freeze_norm")

    def total_steps(self, n_images: int) -> int:
        """Optimiser steps of a run over a set of `n_images`."""
        per_epoch = n_images // self.batch_size
        return self.steps if self.steps is not None else max(1, round(self.epochs * per_epoch))


def config_from(table: dict[str, Any]) -> Config:
    """The configuration whose `dataclasses.asdict` went through JSON: checkpoints hold it so.

    Raises:
        InvalidArgument: it has settings that this version does not know.
    """
    return cast("Config", _from_table(Config(""), table))


def _from_table(default: Any, table: dict[str, Any]) -> Any:
    """`default` with the fields of a table; lists become tuples where the default has one."""
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
    """Whether a value is of the kind of the present one; whole numbers will do for fractions, true and false do not."""
    if isinstance(value, bool) or isinstance(present, bool):
        return isinstance(value, bool) and isinstance(present, bool)
    return isinstance(value, (int, float) if isinstance(present, float) else type(present))
