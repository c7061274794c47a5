"""What a user says about a backbone. Imports nothing heavy: command lines and settings are made of it.

An option of the backbone is declared here and nowhere else: the flags of every verb with a model, the flags, variables
and settings of the server, and the pages that list them are made of the fields below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Said:
    """How a user says one field: `--image-size`, SMN_IMAGE_SIZE.

    Args:
        name: the option's, as Python writes it (`image_size`).
        help: a few words, without a full stop.
        metavar: what stands for the value in the help; by default its type.
        otherwise: what holds where nothing is said, if the default itself does not tell.
        at_least: the smallest value that a server starts with.
    """

    name: str
    help: str
    metavar: str | None = None
    otherwise: str = ""
    at_least: int | None = None


def said(
    name: str, help: str, metavar: str | None = None, otherwise: str = "", at_least: int | None = None
) -> dict[str, Said]:
    """The metadata of a field that a user can set; see `Said`."""
    return {"said": Said(name, help, metavar, otherwise, at_least)}


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone by name and weights; everything not said is timm's own.

    `name` is a timm model name, with or without the tag that chooses its pretrained weights. `args` are extra
    `create_model` arguments. `image_size` (px) does not change the fingerprint: position embeddings are resampled
    after the weights were loaded. `crop_pct` is the share of an image's shorter side that is seen; 1 cuts nothing off.
    """

    name: str = field(metadata=said("backbone", "timm model name", "NAME", "the mask's own, else vit_tiny_patch16_224"))
    weights: Path | None = field(
        default=None,
        metadata=said("weights", "safetensors or weights_only checkpoint", "FILE", "timm's pretrained weights"),
    )
    args: Mapping[str, Any] = field(
        default_factory=dict, metadata=said("model_arg", "Extra create_model argument; may be repeated", "KEY=VALUE")
    )
    image_size: int | None = field(
        default=None, metadata=said("image_size", "Side of the input in pixels", "PX", "timm's", at_least=1)
    )
    mean: tuple[float, ...] | None = field(
        default=None, metadata=said("mean", "Pixel mean, one or three numbers", "R,G,B", "timm's")
    )
    std: tuple[float, ...] | None = field(
        default=None, metadata=said("std", "Pixel deviation, one or three numbers", "R,G,B", "timm's")
    )
    crop_pct: float | None = field(
        default=None,
        metadata=said("crop_pct", "Share of the shorter side that is seen, 1 for all", "SHARE", "timm's"),
    )
    device: str = field(
        default="auto", metadata=said("device", "cpu, cuda, cuda:1; auto takes a GPU where there is one")
    )
    dtype: str = field(default="float32", metadata=said("dtype", "float32, bfloat16 or float16"))
    by_variable: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Fields that only an `SMN_` variable named: what a mask says of them goes before it."""
