"""The id of a space: text that says what made a vector, equal for two vectors that may be compared.

    smn1:<backbone>:<root | mask or cascade>:<pixels>[:<mode>][:d<n>][:l2][:<kind>]

The first 16 digits of the backbone's fingerprint; `root`, or the first 16 of what makes the vectors; the first 8 of
the sha256 of the pixels' canonical JSON; then the mode of a cascade, and what was done to the vectors afterwards. A
client can compute it from `/info` and the file alone. docs/formats.md has the rule, under "Spaces".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from smn_core.backbone import Backbone
from smn_core.cascade.cascade import Cascade
from smn_core.cascade.fusion import MODES
from smn_core.errors import InvalidArgument
from smn_core.mask import TaskMask
from smn_core.tensorfile import canonical_json
from smn_core.vectors import vectors_of_cascade, vectors_of_mask, vectors_of_root

SCHEME, ROOT = "smn1", "root"
BACKBONE_DIGITS, VECTORS_DIGITS, PIXELS_DIGITS = 16, 16, 8
KINDS = ("int8", "uint8", "binary", "ubinary")
"""How the numbers of a vector may be rounded; vectors of floats have no kind."""


class SpaceNames:
    """Names the spaces of one backbone. What they have in common is worked out once: a name costs nothing then."""

    def __init__(self, backbone: Backbone) -> None:
        self._start = f"{SCHEME}:{backbone.fingerprint[:BACKBONE_DIGITS]}"
        self._pixels = hash_pixels(backbone.preprocess)
        self._of_root = vectors_of_root(backbone.layout)

    def name(self, vectors: str | None) -> str:
        """The id of what makes the vectors; None, or an all-ON mask's, is the root. A cascade still lacks its mode."""
        inner = ROOT if vectors is None or vectors == self._of_root else vectors[:VECTORS_DIGITS]
        return f"{self._start}:{inner}:{self._pixels}"


def space_of_mask(backbone: Backbone, mask: TaskMask | None) -> str:
    """The id of the space of a mask's embeddings; None: of the untouched backbone's.

    A mask that is all ON, without state and map, is in the root's space.
    """
    return name_space(backbone, vectors_of_mask(mask) if mask is not None else None)


def space_of_cascade(backbone: Backbone, cascade: Cascade, mode: str, of_masks: Sequence[str]) -> str:
    """The id of the space of a cascade's embeddings in a mode; `of_masks` are the `vectors` of root and experts."""
    return shape_space(name_space(backbone, vectors_of_cascade(cascade, of_masks)), mode=mode)


def name_space(backbone: Backbone, vectors: str | None) -> str:
    """The id, where what makes the vectors is known already. Who names many spaces keeps a `SpaceNames`."""
    return SpaceNames(backbone).name(vectors)


def shape_space(
    space: str,
    *,
    mode: str | None = None,
    dimensions: int | None = None,
    normalize: bool = False,
    kind: str | None = None,
) -> str:
    """The id of a space whose vectors a cascade's mode made, or that were cut, brought to unit length or rounded.

    Args:
        dimensions: components that were kept; None where none was cut, so who calls compares with the width.
        kind: int8, uint8, binary or ubinary; None for floats.

    Raises:
        InvalidArgument: no such mode or kind, or no number of components.
    """
    if mode is not None and mode not in MODES:
        raise InvalidArgument(f"{mode!r} is no mode of a cascade: {', '.join(MODES)}")
    if dimensions is not None and dimensions < 1:
        raise InvalidArgument(f"a vector of {dimensions} dimensions")
    if kind is not None and kind not in KINDS:
        raise InvalidArgument(f"{kind!r} is no kind of numbers: {', '.join(KINDS)}")
    cut, length = f"d{dimensions}" if dimensions is not None else None, "l2" if normalize else None
    return ":".join(part for part in (space, mode, cut, length, kind) if part is not None)


def hash_pixels(preprocess: Mapping[str, Any]) -> str:
    """8 digits of what is done to pixels."""
    return hashlib.sha256(canonical_json(tell_pixels(preprocess)).encode()).hexdigest()[:PIXELS_DIGITS]


def tell_pixels(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """What is done to pixels, as `/info` tells it: sides are integers, mean, deviation and crop are floats."""
    return {
        "input_size": [int(side) for side in preprocess["input_size"]],
        "mean": [float(value) for value in preprocess["mean"]],
        "std": [float(value) for value in preprocess["std"]],
        "interpolation": str(preprocess["interpolation"]),
        "crop_pct": float(preprocess["crop_pct"]),
        "crop_mode": str(preprocess["crop_mode"]),
    }
