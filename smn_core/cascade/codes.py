"""Matrices of 2 to 8 bits an entry, packed: each entry is a whole number, its code, and each row has a scale.

An entry stands for `to_levels(code) * scale of its row`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from smn_core import bits


def pack(codes: UInt8[ndarray, "q f"], n_bits: int) -> UInt8[ndarray, "q n_bytes"]:
    """Code i of a row takes its bits `i * n_bits` to `(i + 1) * n_bits - 1`, least significant first; padding is 0."""
    planes = codes[..., None] >> np.arange(n_bits, dtype=np.uint8) & 1
    return np.stack([bits.pack(row.ravel().view(np.bool_)) for row in planes])


def unpack(packed: UInt8[ndarray, "q n_bytes"], n_bits: int, n_codes: int) -> UInt8[ndarray, "q f"]:
    """Read the first `n_codes` codes of every row."""
    return bits.unpack_fields(packed, n_bits, n_codes)


def row_bytes(n_codes: int, n_bits: int) -> int:
    """Bytes that a row of `n_codes` codes takes."""
    return bits.packed_bytes(n_codes * n_bits)


def padding_is_clear(packed: UInt8[ndarray, "q n_bytes"], n_bits: int, n_codes: int) -> bool:
    """Whether every bit past the last code is 0."""
    return all(bits.padding_is_clear(row, n_codes * n_bits) for row in packed)


def to_levels(codes: UInt8[ndarray, "q f"], n_bits: int) -> Float32[ndarray, "q f"]:
    """The values of codes before the scale: `code - (2 ** n_bits - 1) / 2`. They lie evenly around 0; none is 0."""
    return codes.astype(np.float32) - np.float32((2**n_bits - 1) / 2)
