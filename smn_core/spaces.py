"""The id of a space: text that says what made a vector, equal for two vectors that may be compared.

    smn1:<backbone>:<root | mask or cascade>:<pixels>

The first 16 digits of the backbone's fingerprint; `root`, or the first 16 of what makes the vectors; the first 8 of
the sha256 of the pixels' canonical JSON. A client can compute it from `/info` and the file alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from smn_core.backbone import Backbone
from smn_core.mask import TaskMask
from smn_core.maskfile import with_bits
from smn_core.tensorfile import canonical_json
from smn_core.vectors import vectors_of_mask, vectors_of_root

SCHEME, ROOT = "smn1", "root"
BACKBONE_DIGITS, VECTORS_DIGITS, PIXELS_DIGITS = 16, 16, 8


def space_of_mask(backbone: Backbone, mask: TaskMask | None) -> str:
    """The id of the space of a mask's embeddings; None: of the untouched backbone's.

    A mask that is all ON, without state and map, is in the root's space.
    """
    return name_space(backbone, vectors_of_mask(with_bits(mask, backbone)) if mask is not None else None)


def name_space(backbone: Backbone, vectors: str | None) -> str:
    """The id, where what makes the vectors is known already; None, or what an all-ON mask has, is the root."""
    inner = ROOT if vectors in (None, vectors_of_root(backbone.layout)) else str(vectors)[:VECTORS_DIGITS]
    return ":".join((SCHEME, backbone.fingerprint[:BACKBONE_DIGITS], inner, hash_pixels(backbone.preprocess)))


def hash_pixels(preprocess: Mapping[str, Any]) -> str:
    """8 digits of what is done to pixels: sides are integers, mean, deviation and crop are floats."""
    told = {
        "input_size": [int(side) for side in preprocess["input_size"]],
        "mean": [float(value) for value in preprocess["mean"]],
        "std": [float(value) for value in preprocess["std"]],
        "interpolation": str(preprocess["interpolation"]),
        "crop_pct": float(preprocess["crop_pct"]),
        "crop_mode": str(preprocess["crop_mode"]),
    }
    return hashlib.sha256(canonical_json(told).encode()).hexdigest()[:PIXELS_DIGITS]
