"""Backbones of every kind, images and checkpoints for the tests of the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from smn_core import bits
from smn_core.backbone import Backbone, wrap
from smn_core.layout import Layout
from smn_core.mask import TaskMask
from smn_core.spec import BackboneSpec

torch.set_num_threads(1)

# Name, side of its images in px, create_model arguments: one of every kind that treats its weights in its own way.
KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet": ("test_resnet", 32, {}),
    "vit": ("test_vit", 32, {"img_size": 32}),
    "convnext": ("test_convnext", 32, {}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        56,
        {"img_size": 56, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4]},
    ),
    "mobilenet-v2": ("mobilenetv2_035", 32, {}),
    "mobilenet-v3": ("mobilenetv3_small_050", 32, {}),
    "deit": ("deit_tiny_distilled_patch16_224", 32, {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "beit": ("beit_base_patch16_224", 32, {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "nfnet": ("test_nfnet", 32, {}),
}
TINY_RESNET = ("resnet18", 16, {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8})
TINY_VIT = ("vit_tiny_patch16_224", 16, {"img_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2})


def plain_model(name: str, args: dict[str, Any], seed: int = 0, num_classes: int = 0) -> nn.Module:
    """A timm model in evaluation mode in which every weight matters: timm starts residual branches at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, **args).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim < 2:
                    parameter.uniform_(0.5, 1.5)
            for key, buffer in model.named_buffers():
                if key.endswith(("running_mean", "running_var")):
                    buffer.uniform_(0.5, 1.5)
    return model


def lively(kind: tuple[str, int, dict[str, Any]], seed: int = 0, dtype: torch.dtype = torch.float32) -> Backbone:
    """A fresh Backbone of `plain_model`."""
    name, _, args = kind
    return wrap(plain_model(name, args, seed), name, BackboneSpec(name, args=args), dtype=dtype)


def images(kind: tuple[str, int, dict[str, Any]], n: int, seed: int = 0) -> Tensor:
    """Normalised images of the side that `kind` takes."""
    return torch.randn(n, 3, kind[1], kind[1], generator=torch.Generator().manual_seed(seed))


def weights_by_hand(model: nn.Module, mask: TaskMask) -> dict[str, Tensor]:
    """theta * M / sqrt(mean M) as docs/method.md, "Masked weights", writes it, and the mask's normalisation state."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in mask.layout:
        on = bits.unpack(mask.packed[tensor.bytes], tensor.n_weights).reshape(tensor.shape)
        theta = weights[tensor.name].numpy().astype(np.float64)
        weights[tensor.name] = torch.from_numpy(theta * on / np.sqrt(on.mean())).float()
    return weights | {name: torch.from_numpy(values.copy()) for name, values in mask.state.items()}


def all_on(mask: TaskMask) -> np.ndarray:
    """The packed bits of a mask of the same layout that switches nothing off."""
    return np.concatenate([bits.pack(np.ones(t.n_weights, bool)) for t in mask.layout])


def write_images(folder: Path, names: list[str], side_px: int = 40) -> Path:
    """A folder of PNGs of random pixels, one of each name."""
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side_px, side_px, 3), np.uint8)).save(path)
    return folder


def by_hand(kind, masks: list[TaskMask | None], x: Tensor) -> list[Tensor]:
    """What each mask makes of each image, through a plain model."""
    plain, expected = plain_model(kind[0], kind[2]), []
    original = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for mask in masks:
        plain.load_state_dict(original)
        if mask is not None:
            plain.load_state_dict(weights_by_hand(plain, mask))
        with torch.inference_mode():
            expected.append(plain(x))
    return expected


def random_mask(layout: Layout, density: float, seed: int) -> TaskMask:
    rng, packed = np.random.default_rng(seed), []
    for tensor in layout:
        on = rng.random(tensor.n_weights, np.float32) < density
        on[rng.integers(tensor.n_weights)] = True
        packed.append(bits.pack(on))
    return TaskMask(layout, "{}", "", np.concatenate(packed), digest="sha256:x")


def random_theta(layout: Layout, seed: int = 0) -> np.ndarray:
    theta = np.zeros(layout.n_elements, np.float32)
    rng = np.random.default_rng(seed)
    for tensor in layout:
        theta[tensor.elements] = rng.standard_normal(tensor.n_weights, np.float32)
    return theta
