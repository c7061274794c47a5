"""What is uploaded and sent in a soak, and what must come back: plain timm with theta' worked out here, by digest."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config

from smn_core import bits
from smn_core.affine import Affine
from smn_core.backbone import load_backbone
from smn_core.cascade.cascade import Cascade, fuse_slowly
from smn_core.cascade.file import serialise_cascade
from smn_core.cascade.fusion import MODES, Fusion
from smn_core.cascade.router import Router, route_slowly, unit
from smn_core.mask import Head, TaskMask
from smn_core.maskfile import serialise_mask
from smn_core.spec import BackboneSpec

MODEL, SIZE_PX, WIDTH = "test_vit", 32, 16
ARGS: dict[str, Any] = {"depth": 1, "embed_dim": WIDTH, "num_heads": 2}
DENSITY = 0.8
EXPERTS, COMPONENTS = 2, 6
WITHIN = 1e-4
"""Relative error of an embedding that is right."""
APART = 1e-2
"""Relative difference of two masks' embeddings at least, so that a wrong mask cannot pass for the right one."""
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Sent:
    """A body, what it is, and the rows of the world's pixels that it holds."""

    body: bytes
    kind: str
    rows: slice


@dataclass(frozen=True)
class File:
    """A mask's or cascade's file and what it gives for all rows of pixels.

    `z` has the embeddings, of a cascade by mode. `probabilities` are those of `classes`, where there is a head.
    """

    data: bytes
    z: Mapping[str, Vectors]
    classes: tuple[str, ...] = ()
    probabilities: Vectors | None = None

    @cached_property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"


class World:
    """A tiny backbone with random weights, names with several files each, cascades, and images.

    `masks` and `cascades` have the files of each name; `parts` are the masks of the cascades, which never change. Every
    second mask has a classifier, every third a map.
    """

    def __init__(self, folder: Path, names: int = 12, versions: int = 3, cascades: int = 2, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        weights = folder / "theta.safetensors"
        torch.manual_seed(seed)
        save_file(timm.create_model(MODEL, num_classes=0, **ARGS).state_dict(), weights)
        self.backbone = load_backbone(BackboneSpec(MODEL, weights=weights, args=ARGS, image_size=SIZE_PX))
        self.flags = ["--backbone", MODEL, "--weights", str(weights), "--image-size", str(SIZE_PX)]
        self.flags += [word for key, value in ARGS.items() for word in ("--model-arg", f"{key}={value}")]
        self._plain = timm.create_model(MODEL, num_classes=0, **ARGS).eval()
        self._theta = load_file(weights)
        self._make_images(rng)
        self.root = File(b"", {"": self._embed(self._theta)})
        self.masks: dict[str, list[File]] = {}
        for i in range(names):
            self.masks[f"mask-{i}"] = [self._mask(rng, head=i % 2 == 1, affine=i % 3 == 2) for _ in range(versions)]
        self.parts: dict[str, File] = {}
        self.cascades = {
            name: [self._cascade(rng, f"{name}.{version}") for version in (1, 2)]
            for name in (f"cascade-{i}" for i in range(cascades))
        }
        self._require_apart()

    @cached_property
    def by_digest(self) -> dict[str, File]:
        files = [file for files in (*self.masks.values(), *self.cascades.values()) for file in files]
        return {file.digest: file for file in (*files, *self.parts.values())}

    @torch.inference_mode()
    def _embed(self, weights: Mapping[str, torch.Tensor]) -> Vectors:
        model: Any = timm.create_model(MODEL, num_classes=0, **ARGS).eval()
        model.load_state_dict(weights)
        model.set_input_size(img_size=(SIZE_PX, SIZE_PX))
        z: Vectors = model(torch.from_numpy(self.pixels)).numpy()
        return z

    def _make_images(self, rng: np.random.Generator) -> None:
        """Arrays of 1, 2 and 5 rows; photos in three formats, alone and three in one body of each kind."""
        rows: list[Vectors] = []
        self.arrays: list[Sent] = []
        self.photos: list[Sent] = []
        for n in (1, 2, 5):
            x = rng.standard_normal((n, 3, SIZE_PX, SIZE_PX)).astype(np.float32)
            self.arrays.append(Sent(as_npy(x), "application/x-npy", slice(len(rows), len(rows) + n)))
            rows += list(x)
        config = {**resolve_model_data_config(self._plain), "input_size": (3, SIZE_PX, SIZE_PX)}
        transform: Any = create_transform(**config, is_training=False)
        for fmt in ("PNG", "JPEG", "WEBP"):
            file = photo(rng, fmt)
            with Image.open(io.BytesIO(file)) as image:
                rows.append(transform(image.convert("RGB")).numpy())
            self.photos.append(Sent(file, f"image/{fmt.lower()}", slice(len(rows) - 1, len(rows))))
        self.pixels: Vectors = np.stack(rows)
        files = [sent.body for sent in self.photos]
        three = slice(len(rows) - 3, len(rows))
        text = json.dumps({"images": [base64.b64encode(file).decode() for file in files]}).encode()
        self.several = [Sent(text, "application/json", three), Sent(*as_multipart(files), three)]

    def _mask(self, rng: np.random.Generator, *, head: bool = False, affine: bool = False) -> File:
        on = {tensor.name: rng.random(tensor.n_weights) < DENSITY for tensor in self.backbone.layout}
        for values in on.values():
            values[rng.integers(len(values))] = True
        weights = dict(self._theta)
        for name, values in on.items():
            theta = weights[name].double().numpy()
            worn = theta * values.reshape(theta.shape) / np.sqrt(values.mean())
            weights[name] = torch.from_numpy(worn).float()
        z = self._embed(weights)
        map_ = None
        if affine:
            map_ = Affine(rng.standard_normal(WIDTH, np.float32), scale=rng.random(WIDTH, np.float32) + 0.5)
            assert map_.scale is not None
            z = (z - map_.mean) * map_.scale
        classifier, probabilities = None, None
        classes: tuple[str, ...] = ()
        if head:
            classes = tuple(f"class-{i}" for i in range(4))
            weight = rng.standard_normal((4, WIDTH), np.float32)
            bias = -(z @ weight.T).mean(0)
            classifier = Head(weight, bias, classes)
            odds = np.exp(z @ weight.T + bias)
            probabilities = odds / odds.sum(1, keepdims=True)
        mask = TaskMask(
            self.backbone.layout,
            self.backbone.model_json,
            self.backbone.fingerprint,
            np.concatenate([bits.pack(values) for values in on.values()]),
            head=classifier,
            affine=map_,
        )
        return File(serialise_mask(mask, "zstd"), {"": z}, classes, probabilities)

    def _cascade(self, rng: np.random.Generator, name: str) -> File:
        masks = [self._mask(rng) for _ in range(1 + EXPERTS)]
        for i, mask in enumerate(masks):
            self.parts[f"{name}.expert-{i}" if i else f"{name}.root"] = mask
        width = WIDTH * len(masks)
        tensors = {
            mode: {
                "mean": rng.standard_normal(width, np.float32),
                "components": rng.standard_normal((COMPONENTS, width), np.float32),
                "scale": rng.random(COMPONENTS, np.float32) + 0.5,
            }
            for mode in MODES
        }
        parts = [mask.z[""] for mask in masks]
        # Two means on either side of the middle row: every row is far from the border between the experts, or nearly.
        ordered = np.sort(unit(parts[0])[:, 0])
        gap = int(np.diff(ordered).argmax())
        middle = float(ordered[gap : gap + 2].mean())
        router = Router(
            np.zeros(WIDTH),
            np.eye(WIDTH)[:1],
            np.ones(1),
            np.full(EXPERTS, 1 / EXPERTS),
            np.array([[middle - 1], [middle + 1]]),
            np.ones((EXPERTS, 1, 1)),
        )
        digests = [mask.digest for mask in masks]
        cascade = Cascade(
            self.backbone.fingerprint, digests[0], tuple(digests[1:]), Fusion("pca", tensors), router=router
        )
        chosen = route_slowly(router, parts[0])
        unconditional, conditional = MODES
        z = {
            unconditional: fuse_slowly(cascade, unconditional, parts),
            conditional: fuse_slowly(cascade, conditional, parts, chosen),
        }
        return File(serialise_cascade(cascade), z)

    def _require_apart(self) -> None:
        """Raise ValueError where two files give nearly the same for a row: an answer by the wrong one would pass."""
        for a, b in combinations([self.root, *self.by_digest.values()], 2):
            for mode in a.z.keys() & b.z.keys():
                if min(map(relative_error, a.z[mode], b.z[mode])) < APART:
                    raise ValueError(f"{a.digest} and {b.digest} cannot be told from each other")


def relative_error(found: Vectors, expected: Vectors) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def photo(rng: np.random.Generator, fmt: str) -> bytes:
    """A file of smooth noise, a little larger than the model's input."""
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize((40, 36), Image.Resampling.BICUBIC).save(buffer, fmt)
    return buffer.getvalue()


def as_npy(x: Vectors) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def as_multipart(files: list[bytes]) -> tuple[bytes, str]:
    """Body and content type of one `image` part for each file."""
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--B--\r\n", "multipart/form-data; boundary=B"
