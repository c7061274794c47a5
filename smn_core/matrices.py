"""A matrix as files store it, of a fusion or a map: float32, float16, or int8 with one float32 scale for each row.

`int8` stores `round(row / scale)` with `scale = max(|row|) / 127`. Fewer than 8 bits an entry are in cascade/codes.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.errors import InvalidArgument

PRECISIONS = ("float32", "float16", "int8")


def quantise(name: str, values: ndarray, precision: str) -> dict[str, ndarray]:
    """The tensor `name` in this precision; int8 adds `<name>_scale`, one number for each vector of the last axis.

    Raises:
        InvalidArgument: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise InvalidArgument(f"unknown precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if precision != "int8":
        return {name: values.astype(precision)}
    largest = np.maximum(np.abs(values).max(-1), 1e-30)
    scale = (largest / 127).astype(np.float32)
    return {name: np.rint(values / scale[..., None]).clip(-127, 127).astype(np.int8), f"{name}_scale": scale}


def dequantise(tensors: Mapping[str, ndarray], name: str) -> Float32[ndarray, "..."]:
    """The tensor `name` as float32, multiplied by `<name>_scale` where there is one."""
    values, scale = tensors[name].astype(np.float32), tensors.get(f"{name}_scale")
    return values if scale is None else values * scale[..., None]
