"""Packed bytes <-> booleans: the only module that knows the bit order.

Bit j of byte i, least significant first, is weight 8*i + j; 1 = ON. Bits past the last weight (padding) are 0.
Vectors of bits in answers are packed the other way round, as vector stores have them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from bitarray import bitarray
from bitarray.util import count_xor
from jaxtyping import Bool, Int64, UInt8
from numpy import ndarray

ENDIAN: Final = "little"


def packed_bytes(n_weights: int) -> int:
    """Bytes that `n_weights` bits take."""
    return (n_weights + 7) // 8


def pack(on: Bool[ndarray, "n"]) -> UInt8[ndarray, "n_bytes"]:
    """`packed[i // 8] >> (i % 8) & 1 == on[i]`."""
    return np.packbits(on, bitorder=ENDIAN)


def unpack(packed: UInt8[ndarray, "n_bytes"], n_weights: int) -> Bool[ndarray, "n"]:
    """`on[i] = packed[i // 8] >> (i % 8) & 1` for the first `n_weights` bits."""
    return np.unpackbits(packed, count=n_weights, bitorder=ENDIAN).view(np.bool_)


def pack_rows_big_endian(on: Bool[ndarray, "n d"]) -> UInt8[ndarray, "n n_bytes"]:
    """Rows as vector stores read them: `packed[:, i // 8] >> (7 - i % 8) & 1 == on[:, i]`. No mask is packed so."""
    return np.packbits(on, axis=1, bitorder="big")


def unpack_fields(packed: UInt8[ndarray, "q n_bytes"], n_bits: int, n_fields: int) -> UInt8[ndarray, "q n"]:
    """Fields of `n_bits` bits, at most 8: field i of a row is its bits `i * n_bits` to `(i + 1) * n_bits - 1`."""
    n_groups = (n_fields + 7) // 8  # of 8 fields, which take n_bits whole bytes
    whole = np.zeros((len(packed), n_groups * n_bits), np.uint8)
    whole[:, : packed.shape[1]] = packed[:, : whole.shape[1]]
    words = np.zeros((len(packed), n_groups), np.uint64)
    for i in range(n_bits):
        words |= whole[:, i::n_bits].astype(np.uint64) << np.uint64(8 * i)
    fields = np.empty((len(packed), n_groups, 8), np.uint8)
    for i in range(8):
        fields[:, :, i] = (words >> np.uint64(i * n_bits)) & np.uint64(2**n_bits - 1)
    return fields.reshape(len(packed), -1)[:, :n_fields]


def view(packed: UInt8[ndarray, "n_bytes"]) -> bitarray:
    """A bitarray over the same memory, without a copy."""
    return bitarray(buffer=np.ascontiguousarray(packed), endian=ENDIAN)


def count(packed: UInt8[ndarray, "n_bytes"]) -> int:
    """How many bits are ON."""
    return view(packed).count()


def count_different(a: UInt8[ndarray, "n_bytes"], b: UInt8[ndarray, "n_bytes"]) -> int:
    """How many positions differ between two masks of one length (their XOR's popcount)."""
    return count_xor(view(a), view(b))


def off_positions(packed: UInt8[ndarray, "n_bytes"], n_weights: int) -> Int64[ndarray, "n_off"]:
    """Ascending flat positions of the OFF weights; reads only the bytes that have one."""
    holes = np.flatnonzero(packed != 0xFF)
    off = np.unpackbits(~packed[holes], bitorder=ENDIAN).reshape(-1, 8)
    byte, bit = np.nonzero(off)
    positions = holes[byte] * 8 + bit
    return positions[positions < n_weights]


def padding_is_clear(packed: UInt8[ndarray, "n_bytes"], n_weights: int) -> bool:
    """Whether every bit past the last weight is 0."""
    used = n_weights % 8
    return used == 0 or int(packed[-1]) >> used == 0
