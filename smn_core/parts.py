"""The parts of a mask's file that are not bits, from its tensors and texts: classifier, pixels, float32 numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from smn_core import tensorfile
from smn_core.errors import InvalidMask
from smn_core.mask import Head
from smn_core.tensorfile import InvalidTensorFile


def head_of(tensors: dict[str, ndarray], metadata: Mapping[str, str]) -> Head | None:
    """Take the classifier's tensors out of `tensors`; all three parts or none.

    Raises:
        InvalidMask: a part is missing, or is none.
    """
    parts = [name for name in ("head.weight", "head.bias") if name in tensors]
    if not parts and "classes" not in metadata:
        return None
    if len(parts) != 2 or "classes" not in metadata:
        raise InvalidMask("a head needs head.weight, head.bias and the metadata key 'classes'")
    weight, bias = (float32_of(name, tensors.pop(name)) for name in parts)
    classes = _json_of(metadata, "classes")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise InvalidMask("metadata key 'classes' is not a list of names")
    if weight.ndim != 2 or bias.ndim != 1:
        raise InvalidMask(f"head.weight {list(weight.shape)} and head.bias {list(bias.shape)} are not [C,D] and [C]")
    return Head(weight, bias, tuple(classes))


def preprocess_of(metadata: Mapping[str, str]) -> Mapping[str, object] | None:
    """What the file says of pixels in training.

    Raises:
        InvalidMask: it is no such table.
    """
    if "preprocess" not in metadata:
        return None
    value = _json_of(metadata, "preprocess")
    numbers = (int, float)
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key, [0, 0, 0]), list)
        and all(isinstance(x, numbers) for x in value.get(key, [0, 0, 0]))
        and len(value.get(key, [0, 0, 0])) == 3
        for key in ("mean", "std", "input_size")
    ):
        raise InvalidMask("metadata key 'preprocess' is not a table with three numbers for mean, std and input_size")
    return value


def _json_of(metadata: Mapping[str, str], key: str) -> object:
    try:
        return tensorfile.parse_json(metadata[key])
    except InvalidTensorFile as error:
        raise InvalidMask(f"metadata key {key!r} {error}") from error


def float32_of(name: str, values: ndarray) -> ndarray:
    """The tensor, or InvalidMask where it has another type."""
    if values.dtype != np.float32:
        raise InvalidMask(f"{name} is {values.dtype}, expected float32")
    return values
