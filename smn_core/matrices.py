"""A matrix as files store it, of a fusion or a map: float32, float16, or int8 with one float32 scale for each row.

`int8` stores `round(row / scale)` with `scale = max(|row|) / 127`. Fewer than 8 bits an entry are in cascade/codes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.errors import InvalidArgument

PRECISIONS = ("float32", "float16", "int8")
BLOCK_BYTES = 2**22
"""A matrix that is not stored as float32 is multiplied by blocks of rows, each as large as that in float32."""


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


def times(
    x: Float32[ndarray, "n f"], rows: Callable[[int, int], ndarray], n_rows: int, scale: ndarray | None = None
) -> Float32[ndarray, "n q"]:
    """`x @ matrix.T`, where `rows(i, j)` are rows i to j - 1 of the matrix, in any type, without their `scale [q]`.

    The whole matrix never exists in float32: a small file must not take much memory.
    """
    out = np.empty((len(x), n_rows), np.float32)
    step = max(1, BLOCK_BYTES // (4 * max(1, x.shape[1])))
    for start in range(0, n_rows, step):
        block = rows(start, min(start + step, n_rows))
        np.matmul(x, block.astype(np.float32, copy=False).T, out=out[:, start : start + len(block)])
    return out if scale is None else out * scale


def dequantise(tensors: Mapping[str, ndarray], name: str) -> Float32[ndarray, "..."]:
    """The tensor `name` as float32, multiplied by `<name>_scale` where there is one."""
    values, scale = tensors[name].astype(np.float32), tensors.get(f"{name}_scale")
    return values if scale is None else values * scale[..., None]
