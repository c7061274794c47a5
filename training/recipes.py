"""Recipes are functions: each returns a whole configuration; its docstring gives command, time and expected score."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch

from smn_core.errors import InvalidArgument
from training.masking import MaskRule
from training.swav import Crops, SwavConfig, require_scale

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


RECIPES: dict[str, Callable[[], Config]] = {}


def recipe(make: Callable[[], Config]) -> Callable[[], Config]:
    """Register a recipe under its function's name."""
    RECIPES[make.__name__.replace("_", "-")] = make
    return make


@recipe
def resnet50_swav() -> Config:
    """The paper's self-supervised mask: ResNet-50 with SwAV weights.

    smn train --recipe resnet50-swav --backbone resnet50 --weights swav_800ep_pretrain.pth.tar
    --data torchvision:cifar10

    150 * 50000 / N epochs at batch 64, a day on one GPU. The paper reports kNN .921 on CIFAR-10 (frozen .832), .656 on
    CIFAR-100 (.497), .971 on EuroSAT (.754). Not run here: no GPU and no such weights on this machine.
    """
    return Config("resnet50-swav", steps=150 * 50_000 // 64)


@recipe
def resnet18_swav() -> Config:
    """The paper's recipe on the small ResNet, whose head is 512 wide.

    smn train --recipe resnet18-swav --backbone resnet18 --data torchvision:cifar10

    Half a day on one GPU. Not run here.
    """
    return Config("resnet18-swav", steps=150 * 50_000 // 64)


@recipe
def resnet_supervised() -> Config:
    """The paper's supervised mask of a ResNet: a random classifier whose mask is learned with the backbone's.

    smn train --recipe resnet-supervised --objective supervised --backbone resnet50 --data torchvision:cifar10

    150 epochs, 40 of them warm-up. The paper reports .962 on CIFAR-10. Not run here.
    """
    return Config(
        "resnet-supervised",
        objective="supervised",
        epochs=150,
        warmup=40 / 150,
        masked_head=True,
        crop_scale=(0.08, 1.0),
    )


@recipe
def vit_clip_supervised() -> Config:
    """The paper's supervised mask of CLIP's ViT-B/32.

    smn train --recipe vit-clip-supervised --objective supervised --backbone vit_base_patch32_clip_224.openai
    --data torchvision:cifar10

    32 epochs. timm's CLIP towers have no projection when built without classes, so an ordinary linear head takes the
    place of the paper's masked projection and text similarities. Not run here.
    """
    return Config("vit-clip-supervised", objective="supervised", epochs=32, lr=10.0, head_lr=0.01)


SMALL_CROPS = Crops(n_small=2, big_scale=(0.4, 1.0), small_scale=(0.2, 0.4), jitter=0.5)
SMALL_SWAV = SwavConfig(crops=SMALL_CROPS, projection=32, prototypes=64, queue=0, frozen_steps=-1, centre=True)


@recipe
def small_vit() -> Config:
    """A ViT-Tiny on a few hundred images or more, at the resolution that serves; cautious.

    smn train --recipe small-vit --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data dtd10 --out dtd10.smn

    12 to 20 minutes of one core. Scores: docs/results.md. Evaluate before you use a mask: where views of an image agree
    well without one (`smn evaluate`, "agreement"), there was little to gain and something to lose.
    """
    return Config(
        "small-vit",
        steps=80,
        batch_size=32,
        lr=5e-4,
        lr_per_tensor=True,
        head_steps=25,
        swav=SMALL_SWAV,
    )


@recipe
def small_vit_gentle() -> Config:
    """Two large, mildly changed crops, and a head that learns for long before the mask: few flips.

    smn train --recipe small-vit-gentle --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data cifar10 --out cifar10.smn

    15 to 20 minutes of one core. Scores: docs/results.md. Masks of CIFAR-10 cost a point or two with small crops and a
    head that knew little when the first weights flipped; which of the two did it was not told apart.
    """
    crops = dataclasses.replace(SMALL_CROPS, n_small=0, big_scale=(0.5, 1.0), jitter=0.25, grey=0.1)
    return dataclasses.replace(
        small_vit(),
        name="small-vit-gentle",
        steps=170,
        lr=3e-4,
        head_steps=110,
        swav=dataclasses.replace(SMALL_SWAV, crops=crops),
    )


@recipe
def small_vit_64px() -> Config:
    """Crops of 64 and 32 px: three times the images a second, for sets whose views agree badly, like aerial photos.

    smn train --recipe small-vit-64px --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data rsscn7 --out rsscn7.smn

    10 to 27 minutes of one core. Scores: docs/results.md. On CIFAR-10 masks learned at 64 px do harm at 224.
    """
    crops = dataclasses.replace(SMALL_CROPS, big_px=64, small_px=32, n_small=4)
    return dataclasses.replace(
        small_vit(),
        name="small-vit-64px",
        steps=480,
        batch_size=64,
        lr=5e-4,
        head_steps=40,
        swav=dataclasses.replace(SMALL_SWAV, crops=crops),
    )


@recipe
def small_vit_supervised() -> Config:
    """The supervised mask that `small-vit` is compared with: as many images a step, an ordinary head.

    smn train --recipe small-vit-supervised --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data rsscn7 --out rsscn7-supervised.smn

    Times and scores: docs/results.md.
    """
    return Config(
        "small-vit-supervised",
        objective="supervised",
        steps=70,
        batch_size=32,
        lr=1e-3,
        lr_per_tensor=True,
        head_lr=2e-3,  # embeddings of these backbones are some 40 long: at .05 the head's loss passes 5 and stays there
        head_steps=15,
        crop_scale=(0.4, 1.0),
    )


@recipe
def small_vit_finetune() -> Config:
    """Full fine-tuning with labels, the upper reference of `small-vit-supervised`.

    smn train --recipe small-vit-finetune --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data rsscn7 --out rsscn7-finetune.safetensors

    Times and scores: docs/results.md.
    """
    return dataclasses.replace(
        small_vit_supervised(), name="small-vit-finetune", objective="finetune", lr=3e-4, lr_per_tensor=False
    )


@recipe
def tiny() -> Config:
    """Digits-sized images and a model of a few hundred thousand weights: seconds. For tests and for a first look.

    smn train --recipe tiny --backbone test_vit --image-size 32 --data digits.npz --out digits.smn
    """
    crops = Crops(big_px=32, small_px=16, n_small=2, big_scale=(0.5, 1.0), small_scale=(0.3, 0.5), jitter=0.5, flip=0.0)
    swav = SwavConfig(crops=crops, projection=16, prototypes=32, queue=0, frozen_steps=-1, centre=True)
    return Config("tiny", steps=40, batch_size=32, lr=2e-3, lr_per_tensor=True, head_steps=10, swav=swav)


def find_recipe(name: str) -> Config:
    """The configuration of a recipe by name.

    Raises:
        InvalidArgument: there is none of this name.
    """
    if name not in RECIPES:
        raise InvalidArgument(f"unknown recipe {name!r}: choose {', '.join(RECIPES)}")
    return RECIPES[name]()


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
