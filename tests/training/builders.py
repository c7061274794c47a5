"""Digits as colour images, small models with random weights, and runs of a few steps."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import smn
from smn_core import bits
from smn_core.backbone import Backbone, load_backbone
from smn_core.mask import TaskMask
from smn_core.spec import BackboneSpec
from training.config import PLAIN, Config
from training.masking import MaskRule
from training.request import Request, Result
from training.run import train
from training.swav import Crops, SwavConfig

REPOSITORY = Path(smn.__file__).parents[1]
SIDE_PX = 32
N_TRAIN, N_TEST = 320, 160
ARGS: dict[str, dict[str, Any]] = {
    "test_vit": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    "test_resnet": {"channels": [8, 8, 16, 16], "stem_width": 8},
}
CROPS = Crops(big_px=32, small_px=16, n_small=1, big_scale=(0.5, 1.0), small_scale=(0.3, 0.5), jitter=0.5, flip=0.0)
SWAV = SwavConfig(crops=CROPS, projection=8, prototypes=16, queue=0, frozen_steps=-1)


@dataclass(frozen=True)
class World:
    """Digits as an .npz, and the weights of small models."""

    data: Path
    folder: Path

    def spec(self, name: str = "test_vit") -> BackboneSpec:
        return BackboneSpec(name, self.folder / f"{name}.safetensors", ARGS[name], SIDE_PX, device="cpu")

    def backbone(self, name: str = "test_vit") -> Backbone:
        return load_backbone(self.spec(name))

    def flags(self, name: str = "test_vit") -> list[str]:
        """How a command line says the same backbone."""
        args = [word for key, value in ARGS[name].items() for word in ("--model-arg", f"{key}={value}")]
        weights = ["--backbone", name, "--weights", str(self.folder / f"{name}.safetensors")]
        return [*weights, *args, "--image-size", str(SIDE_PX), "--device", "cpu"]


class Stopped(Exception):
    """The machine went away."""


def digits() -> dict[str, np.ndarray]:
    """scikit-learn's digits: 8 x 8 grey -> 32 x 32 RGB uint8, in a fixed random order."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels = np.kron(found.images[order] * 15, np.ones((4, 4))).astype(np.uint8)
    x, y = np.repeat(pixels[..., None], 3, axis=-1), found.target[order]
    test = slice(N_TRAIN, N_TRAIN + N_TEST)
    return {"x_train": x[:N_TRAIN], "y_train": y[:N_TRAIN], "x_test": x[test], "y_test": y[test]}


def build_world(folder: Path) -> World:
    data = folder / "digits.npz"
    np.savez(data, **digits())
    for name, args in ARGS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=False, num_classes=0, **args)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return World(data, folder)


def enliven(world: World, folder: Path) -> World:
    """The same with a ResNet whose BatchNorm has statistics of its own: those of a new model are 0 and 1."""
    path, generator = world.folder / "test_resnet.safetensors", torch.Generator().manual_seed(2)
    weights = load_file(path)
    for name, value in weights.items():
        if name.endswith("running_mean"):
            weights[name] = torch.randn(value.shape, generator=generator) / 4
    save_file(weights, folder / path.name)
    return World(world.data, folder)


def config(objective: str = "swav", **changes: Any) -> Config:
    """Eight steps of sixteen digits."""
    base = Config(
        "test", precision=PLAIN, swav=SWAV, steps=8, batch_size=16, lr=2e-2, lr_per_tensor=True, crop_scale=(0.5, 1.0)
    )
    return replace(base, objective=objective, **changes)  # type: ignore[arg-type]


def plain_lr(init: float, threshold: float, lr: float, objective: str = "swav", **changes: Any) -> Config:
    """Scores moved by their own gradients, as the theorems want it."""
    return config(objective, lr_per_tensor=False, lr=lr, mask=MaskRule(init, threshold), **changes)


def run(world: World, out: Path, config: Config, name: str = "test_vit", **more: Any) -> Result:
    more = {"workers": 0, "overwrite": not more.get("resume", False), "command": ["smn", "train"], **more}
    return train(Request(world.spec(name), more.pop("data", str(world.data)), config, out, **more))


def mask_bits(mask: TaskMask) -> np.ndarray:
    """All bits of a mask, in layout order, padding included."""
    return bits.unpack(mask.packed, 8 * len(mask.packed))


def train_command(world: World, out: Path, *more: object, name: str = "test_vit") -> list[str]:
    """`smn train` on digits, eight steps; later options win."""
    small = ["--recipe", "tiny", "--set", "steps=8", "--set", "batch_size=16", "--set", "head_steps=2"]
    small += ["--set", "swav.prototypes=16", "--workers", "0", "--threads", "1"]
    where = ["--data", str(world.data), "--out", str(out), *world.flags(name)]
    return ["train", *where, *small, *map(str, more)]


def manifest(world: World, folder: Path, *masks: str, defaults: str = "") -> Path:
    """`[[mask]]` tables over the defaults that `train_command` has as flags."""
    args = ", ".join(f'"{key}={value}"' for key, value in ARGS["test_vit"].items())
    text = f"""
    [defaults]
    data = "{world.data}"
    backbone = "test_vit"
    weights = "{world.folder}/test_vit.safetensors"
    model-arg = [{args}]
    image-size = 32
    device = "cpu"
    recipe = "tiny"
    set = ["steps=8", "batch_size=16", "head_steps=2", "swav.prototypes=16"]
    workers = 0
    threads = 1
    {defaults}
    """
    path = folder / "masks.toml"
    path.write_text(text + "".join(f"\n[[mask]]\n{mask}\n" for mask in masks))
    return path


def states(out: str) -> dict[str, str]:
    """What `smn train-many --json` says became of each output, by file name."""
    return {Path(row["out"]).name: row["state"] for row in json.loads(out)["masks"]}


def python(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


def class_folders(root: Path, *paths: str) -> None:
    """One image in each of these folders."""
    for i, path in enumerate(paths):
        (root / path).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(root / path / "x.png")
