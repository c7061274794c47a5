"""The demonstration: train a small backbone on digits, then learn masks without labels for digits that look different.

It is real training, on any machine, without a download. The backbone learns from 600 of scikit-learn's digits with
their labels. A domain is 700 other digits, inverted or noisy. Its mask learns from their pixels alone. 497 further
digits, changed in the same way, measure the untouched backbone, its mask and the other domain's mask.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image, ImageOps

from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.files import write_bytes
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec
from smn_core.tensorfile import canonical_json, digest_of
from training.config import Config
from training.evaluation.evaluate import EvaluationSettings, evaluate
from training.request import Request
from training.run import train
from training.swav import Crops, SwavConfig

ARCHITECTURE = "test_resnet"
SIDE_PX = 32
SEED = 0
N_BACKBONE, N_DOMAIN = 600, 700
SHOWN = 8
"""So many pictures of every digit and domain are for the console."""
FORM = 2
"""Of what is kept: a folder of an earlier form is made anew."""

BACKBONE = Config(
    "demo-backbone",
    objective="finetune",
    steps=150,
    batch_size=64,
    lr=0.05,
    head_lr=0.05,
    weight_decay=1e-4,
    warmup=0.1,
    crop_scale=(0.6, 1.0),
)
MASKS = Config(
    "demo-mask",
    steps=60,
    batch_size=64,
    lr=1e-3,
    lr_per_tensor=True,
    head_steps=15,
    swav=SwavConfig(
        crops=Crops(
            big_px=SIDE_PX,
            big_scale=(0.6, 1.0),
            small_px=24,
            n_small=2,
            small_scale=(0.4, 0.6),
            jitter=0.4,
            grey=0.1,
            blur=0.2,
            flip=0.0,
        ),
        projection=32,
        prototypes=30,
        queue=0,
        frozen_steps=-1,
        centre=True,
    ),
)


def invert(image: Image.Image) -> Image.Image:
    """Dark digits on white."""
    return ImageOps.invert(image)


def add_noise(image: Image.Image) -> Image.Image:
    """Pale digits under noise. The noise depends on the pixels, so a digit always looks the same."""
    pixels = np.asarray(image).astype(np.float64)
    rng = np.random.default_rng(int(pixels.sum()))
    return Image.fromarray((0.5 * pixels + rng.normal(60, 45, pixels.shape)).clip(0, 255).astype(np.uint8))


DOMAINS: dict[str, Callable[[Image.Image], Image.Image]] = {"inverted": invert, "noisy": add_noise}


@dataclass(frozen=True)
class Demo:
    """What was prepared.

    `scores` has a row for every domain and everything that its pictures are seen through: `domain`, `through` (a mask's
    name, or None for the untouched backbone), `knn` and `linear` (shares of `images` pictures). `pictures` is a folder
    of digits with a folder for each digit; `sample` is one more picture.
    """

    spec: BackboneSpec
    masks: dict[str, Path]
    scores: list[dict[str, Any]]
    pictures: Path
    sample: Path


def recipe() -> str:
    """What a folder was made by: of another one it is made anew."""
    return digest_of(canonical_json([FORM, asdict(BACKBONE), asdict(MASKS), list(DOMAINS)]).encode())


def prepare(folder: Path, say: Callable[[str], None]) -> Demo:
    """Make in `folder` everything that the demonstration serves. A later start uses it again."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    # So small a model gains nothing from more threads, and loses much where another process has a core.
    torch.set_num_threads(1)
    done = folder / "demo.json"
    spec = BackboneSpec(ARCHITECTURE, folder / "backbone.safetensors", image_size=SIDE_PX, device="cpu")
    masks = {name: folder / f"{name}.smn" for name in DOMAINS}
    found = json.loads(done.read_text()) if done.exists() else {}
    if found.get("recipe") != recipe():
        found = {"recipe": recipe(), "scores": _make(folder, spec, masks, say)}
        write_bytes(done, json.dumps(found, indent=2).encode())
    return Demo(spec, masks, found["scores"], folder / "pictures", folder / "sample-inverted.png")


def _make(folder: Path, spec: BackboneSpec, masks: dict[str, Path], say: Callable[[str], None]) -> list[dict[str, Any]]:
    images, labels = _load_digits()
    _write_npz(folder / "plain.npz", images, labels, slice(0, N_BACKBONE))
    say("training a small backbone on 600 digits, with labels")
    _train_backbone(folder, spec)
    for name, change in DOMAINS.items():
        data = folder / f"{name}.npz"
        changed = [change(image) for image in images]
        _write_npz(data, changed, labels, slice(N_BACKBONE, N_BACKBONE + N_DOMAIN))
        _write_pictures(folder / "pictures", name, changed[N_BACKBONE + N_DOMAIN : -1], labels[N_BACKBONE + N_DOMAIN :])
        if name == "inverted":
            changed[-1].convert("RGB").save(folder / "sample-inverted.png")
        say(f"learning a mask for {name} digits, without labels")
        train(Request(spec, str(data), MASKS, masks[name], seed=SEED, overwrite=True))
    say("measuring both masks on both kinds of digits")
    return _measure(folder, spec, masks)


def _measure(folder: Path, spec: BackboneSpec, masks: dict[str, Path]) -> list[dict[str, Any]]:
    engine = Engine(load_backbone(spec), slots=len(masks))
    worn = [(name, read_mask(path)) for name, path in masks.items()]
    scores = []
    for domain in DOMAINS:
        settings = EvaluationSettings(str(folder / f"{domain}.npz"), views=False)
        images = len(np.load(folder / f"{domain}.npz")["y_test"])
        for through, row in zip((None, *masks), evaluate(engine, worn, settings)["rows"], strict=True):
            measured = {"knn": row["knn"], "linear": row["linear"], "images": images}
            scores.append({"domain": domain, "through": through, **measured})
    return scores


def _train_backbone(folder: Path, spec: BackboneSpec) -> None:
    import timm
    import torch

    from smn_core.tensorfile import serialise_tensors

    torch.manual_seed(SEED)
    fresh = timm.create_model(ARCHITECTURE, num_classes=0).state_dict()
    initial = folder / "initial.safetensors"
    write_bytes(initial, serialise_tensors({name: tensor.numpy() for name, tensor in fresh.items()}, {}))
    start = BackboneSpec(ARCHITECTURE, initial, image_size=SIDE_PX, device="cpu")
    assert spec.weights is not None
    train(Request(start, str(folder / "plain.npz"), BACKBONE, spec.weights, seed=SEED, overwrite=True))


def _load_digits() -> tuple[list[Image.Image], ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.images))
    pixels = (digits.images[order] * 255 / 16).astype(np.uint8)
    images = [Image.fromarray(p).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC) for p in pixels]
    return images, digits.target[order]


def _write_npz(path: Path, images: list[Image.Image], labels: ndarray, train_part: slice) -> None:
    """Write `train_part` as the train split, and as test split what neither backbone nor masks learn from."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    test = slice(N_BACKBONE + N_DOMAIN, None)
    np.savez_compressed(
        path, x_train=pixels[train_part], y_train=labels[train_part], x_test=pixels[test], y_test=labels[test]
    )


def _write_pictures(folder: Path, domain: str, images: list[Image.Image], labels: ndarray) -> None:
    """Write some pictures of every digit, in a folder of its name; nothing has learned from them."""
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
        chosen = [image for image, label in zip(images, labels, strict=False) if label == digit][:SHOWN]
        for number, image in enumerate(chosen):
            image.convert("RGB").save(folder / str(digit) / f"{domain}-{number}.png")
