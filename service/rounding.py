"""Vectors of small numbers: int8, uint8, and one bit a component. docs/dialects.md has the scheme.

Each vector is rounded by itself, so nothing has to be calibrated or kept, and equal vectors give equal numbers:

    u = z / |z|      int8 = round(127 u)      uint8 = int8 + 128
    ubinary = bits of z > 0, most significant first      binary = ubinary - 128

round is to the nearest, halves to even. What is left of a vector is its direction: compare int8 by cosine or dot
product, bits by Hamming distance. Dividing by the largest component instead would keep more digits, but then vectors
have different lengths, and a dot product finds the wrong neighbours.
"""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int8, Shaped, UInt8
from numpy import ndarray

from smn_core.bits import pack_rows_big_endian

Kind = Literal["float", "int8", "uint8", "binary", "ubinary"]
OFFSET = 128
"""Between signed and unsigned numbers of 8 bits."""
LARGEST = np.float32(127)


def round_to(z: Float32[ndarray, "n d"], kind: str) -> Shaped[ndarray, "n m"]:
    """Rows as a kind of numbers: [n, d] of float32, int8 or uint8, or [n, ceil(d / 8)] of bits. A row of 0 gives 0."""
    if kind == "float":
        return z
    if kind in ("binary", "ubinary"):
        packed = pack_rows_big_endian(z > 0)
        return packed if kind == "ubinary" else _signed(packed)
    largest = np.maximum(np.abs(z).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    z = z / largest  # else the square of a very long or short vector is no float32
    rounded = np.rint(z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1) * LARGEST).astype(np.int8)
    return rounded if kind == "int8" else (rounded.astype(np.int16) + OFFSET).astype(np.uint8)


def as_base64(row: Shaped[ndarray, "m"]) -> str:
    """A row's bytes in base64, little-endian."""
    return base64.b64encode(row.astype(row.dtype.newbyteorder("<"), copy=False).tobytes()).decode()


def _signed(packed: UInt8[ndarray, "n m"]) -> Int8[ndarray, "n m"]:
    return (packed.astype(np.int16) - OFFSET).astype(np.int8)
