"""What a user says about a backbone. Imports nothing heavy: command lines and settings are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone by name and weights; everything not said is timm's own.

    `name` is a timm model name, with or without the tag that chooses its pretrained weights. `args` are extra
    `create_model` arguments. `image_size` (px) does not change the fingerprint: position embeddings are resampled
    after the weights were loaded. `crop_pct` is the share of an image's shorter side that is seen; 1 cuts nothing off.
    """

    name: str
    weights: Path | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    device: str = "auto"
    dtype: str = "float32"
