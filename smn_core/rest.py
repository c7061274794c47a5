"""What a mask's file has beside its bits, as one tensor: statistics, map and head in byte planes under zstd. Lossless.

The numbers of one type follow each other plane by plane: first the lowest byte of each, then the next. The highest
bytes of floats, and all of an int8 map, are far from random; the lowest bytes of floats are, and cost what they have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from typing import NamedTuple

import numpy as np
import zstandard
from jaxtyping import UInt8
from numpy import ndarray

from smn_core.errors import InvalidMask
from smn_core.tensorfile import (
    DTYPES,
    MAX_KEY_CHARS,
    MAX_TENSORS,
    MOST_SAID,
    NAMES,
    InvalidTensorFile,
    canonical_json,
    is_unicode,
    require_few_values,
)

REST = "rest"
"""The tensor's name in the file."""
PARTS = ("state.", "affine.", "head.")
"""What the names of the tensors in it begin with."""
LEVEL = 19
MAX_LIST_BYTES = 4 * 2**20
MAX_SIDES = 64
"""Of a tensor, as numpy has it."""


class _Kept(NamedTuple):
    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(DTYPES[self.type]).itemsize


def pack_rest(tensors: Mapping[str, ndarray]) -> UInt8[ndarray, "n"]:
    """One tensor in place of many. Equal tensors give equal bytes."""
    order = sorted(tensors, key=lambda name: (NAMES[tensors[name].dtype], name.rpartition(".")[2], name))
    kept = [_Kept(name, NAMES[tensors[name].dtype], tensors[name].shape) for name in order]
    told = canonical_json([[one.name, one.type, list(one.shape)] for one in kept]).encode()
    parts = [len(told).to_bytes(4, "little"), told]
    for type_, run in _runs(kept):
        flat = np.concatenate([tensors[one.name].reshape(-1) for one in run]).astype(DTYPES[type_], copy=False)
        parts.append(flat.view(np.uint8).reshape(flat.size, flat.itemsize).T.tobytes())
    frame = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(b"".join(parts))
    return np.frombuffer(frame, np.uint8)


def unpack_rest(stored: ndarray, most_bytes: int) -> dict[str, ndarray]:
    """The tensors by name, read-only.

    Args:
        most_bytes: what they may have together. A frame that declares more is refused before it is decompressed.

    Raises:
        InvalidMask: not one whole frame of such tensors; too large; a name twice, or one that does not belong there.
    """
    if stored.dtype != np.uint8 or stored.ndim != 1:
        raise InvalidMask(f"{REST} is {stored.dtype} {list(stored.shape)}, expected uint8 of one dimension")
    frame = stored.tobytes()
    try:
        declared = zstandard.frame_content_size(frame)
        if not 4 <= declared <= 4 + MAX_LIST_BYTES + most_bytes:
            raise InvalidMask(f"{REST} declares {declared} bytes, more than statistics, map and head of this backbone")
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidMask(f"{REST} is not one whole zstd frame: {error}") from error
    start = 4 + int.from_bytes(data[:4], "little")
    if start > min(len(data), 4 + MAX_LIST_BYTES):
        raise InvalidMask(f"{REST} ends within its list of tensors")
    kept = _list_of(data[4:start])
    if sum(one.nbytes for one in kept) != len(data) - start:
        raise InvalidMask(f"{REST} has {len(data) - start} bytes of numbers, its list has others")
    return dict(_tensors(data, start, kept))


def _runs(kept: Sequence[_Kept]) -> Iterator[tuple[str, list[_Kept]]]:
    """Neighbours of one type."""
    return ((type_, list(run)) for type_, run in groupby(kept, lambda one: one.type))


def _tensors(data: bytes, start: int, kept: Sequence[_Kept]) -> Iterator[tuple[str, ndarray]]:
    for type_, run in _runs(kept):
        dtype, size = np.dtype(DTYPES[type_]), sum(prod(one.shape) for one in run)
        planes = np.frombuffer(data, np.uint8, size * dtype.itemsize, start).reshape(dtype.itemsize, size)
        flat = np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
        flat.setflags(write=False)
        start += flat.nbytes
        for one, values in zip(run, np.split(flat, np.cumsum([prod(one.shape) for one in run])[:-1]), strict=True):
            try:
                shaped = values.reshape(one.shape)
            except ValueError as error:  # a side of 0 beside such that no array has
                said = str(list(one.shape))[:MOST_SAID]
                raise InvalidMask(f"{REST} lists {one.name} with the impossible shape {said}") from error
            yield one.name, shaped


def _list_of(text: bytes) -> list[_Kept]:
    try:
        require_few_values(text, "it")
        found = json.loads(text.decode())
        kept = [_Kept(name, type_, tuple(shape)) for name, type_, shape in found]
        sound = all(
            isinstance(one.name, str) and one.name.startswith(PARTS) and one.type in DTYPES
            and len(one.name) <= MAX_KEY_CHARS and is_unicode(one.name)
            and len(one.shape) <= MAX_SIDES and all(type(n) is int and 0 <= n < 2**31 for n in one.shape)
            for one in kept
        )  # fmt: skip
    except (InvalidTensorFile, ValueError, TypeError, RecursionError) as error:
        raise InvalidMask(f"{REST} has no list of tensors: {error}") from error
    if not sound or len(kept) > MAX_TENSORS or len({one.name for one in kept}) != len(kept):
        raise InvalidMask(f"{REST} lists a tensor twice, too many, or one that does not belong there")
    return kept
