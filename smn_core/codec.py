"""Encode the packed bits of a mask as tensors of a file, and decode them. The codecs: `raw`, `zstd` and `context`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import zstandard
from jaxtyping import UInt8
from numpy import ndarray

from smn_core.contextual.classes import Classes
from smn_core.contextual.stream import MAX_EXTRA_BYTES, decode_bits, encode_bits
from smn_core.errors import InvalidMask, WeightsNeeded
from smn_core.layout import Layout

PREFIX = "mask."
WHOLE_TENSOR = "bits"
# On random bits of density .95, level 19 takes 1.07 times their entropy, level 1 takes 1.27 and level 3 takes 1.32. On
# denser masks level 19 is further off: 1.37 at .9977 (docs/decisions.md "Masks are compressed with zstd at level 19").
ZSTD_LEVEL = 19
CONTEXT = "context"
CODECS = ("raw", "zstd", CONTEXT)


def encode(
    packed: UInt8[ndarray, "n_bytes"],
    layout: Layout,
    codec: str,
    classes: Classes | None = None,
    parent: UInt8[ndarray, "n_bytes"] | None = None,
) -> dict[str, ndarray]:
    """Store `packed` as tensors under `codec`. Equal bits give equal bytes.

    Args:
        classes: of the backbone's weights, which `context` needs.
        parent: the bits of another mask, which `context` may code against.

    Raises:
        InvalidMask: smn-mask/1 does not have the codec.
        WeightsNeeded: codec `context` without the classes.
    """
    if codec == "raw":
        return {PREFIX + t.name: packed[t.bytes] for t in layout}
    if codec == "zstd":
        frame = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True).compress(packed.tobytes())
        return {WHOLE_TENSOR: np.frombuffer(frame, np.uint8)}
    if codec == CONTEXT:
        return {WHOLE_TENSOR: encode_bits(packed, layout, _known(classes), parent)}
    raise InvalidMask(f"unknown codec {codec!r}: smn-mask/1 has {', '.join(CODECS)}")


def decode(
    tensors: Mapping[str, ndarray],
    layout: Layout,
    codec: str,
    classes: Classes | None = None,
    parent: UInt8[ndarray, "n_bytes"] | None = None,
) -> UInt8[ndarray, "n_bytes"]:
    """Read the packed bits of a whole mask. `tensors` are the mask tensors of a file and no others.

    The result has the layout's number of bytes. A file that declares another number is refused before anything is
    decompressed.

    Raises:
        InvalidMask: an unknown codec; a missing or extra tensor; a wrong type, shape, length, zstd frame or stream.
        WeightsNeeded: codec `context` without the classes.
    """
    if codec == "raw":
        return _decode_raw(tensors, layout)
    if codec == "zstd":
        return _decode_zstd(tensors, layout)
    if codec == CONTEXT:
        return decode_bits(check_coded(tensors, layout), layout, _known(classes), parent)
    raise InvalidMask(f"unknown codec {codec!r}: smn-mask/1 has {', '.join(CODECS)}")


def check_coded(tensors: Mapping[str, ndarray], layout: Layout) -> UInt8[ndarray, "n"]:
    """The stream of codec `context`, as far as it can be checked without the backbone's weights.

    Raises:
        InvalidMask: a missing or extra tensor; a wrong type or shape; more bytes than any mask takes.
    """
    stream = _whole(tensors)
    if stream.size > layout.n_bytes + MAX_EXTRA_BYTES:
        raise InvalidMask(f"the coded bits have {stream.size} bytes, more than those of any mask of {layout.n_bytes}")
    return stream


def _known(classes: Classes | None) -> Classes:
    if classes is None:
        raise WeightsNeeded("codec context needs the backbone's weights: name them with --weights FILE")
    return classes


def _whole(tensors: Mapping[str, ndarray]) -> UInt8[ndarray, "n"]:
    _require_names(set(tensors), {WHOLE_TENSOR})
    stored = tensors[WHOLE_TENSOR]
    if stored.dtype != np.uint8 or stored.ndim != 1:
        raise InvalidMask(f"{WHOLE_TENSOR} is {stored.dtype} {list(stored.shape)}, expected uint8 of one dimension")
    return stored


def _decode_raw(tensors: Mapping[str, ndarray], layout: Layout) -> UInt8[ndarray, "n_bytes"]:
    expected = {PREFIX + t.name: t for t in layout}
    _require_names(set(tensors), set(expected))
    packed = np.empty(layout.n_bytes, np.uint8)
    for name, tensor in expected.items():
        stored = tensors[name]
        if stored.dtype != np.uint8 or stored.shape != (tensor.n_bytes,):
            raise InvalidMask(f"{name} is {stored.dtype} {list(stored.shape)}, expected uint8 [{tensor.n_bytes}]")
        packed[tensor.bytes] = stored
    return packed


def _decode_zstd(tensors: Mapping[str, ndarray], layout: Layout) -> UInt8[ndarray, "n_bytes"]:
    frame = _whole(tensors).tobytes()
    try:
        declared = zstandard.frame_content_size(frame)
        if declared != layout.n_bytes:
            raise InvalidMask(f"the zstd frame declares {declared} bytes, the backbone's bits are {layout.n_bytes}")
        # The buffer has the declared size. A frame that holds more fails here; the buffer never grows.
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidMask(f"the bits are not one whole zstd frame: {error}") from error
    if len(data) != layout.n_bytes:
        raise InvalidMask(f"the zstd frame holds {len(data)} bytes, the backbone's bits are {layout.n_bytes}")
    return np.frombuffer(data, np.uint8)


def _require_names(found: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing:
        raise InvalidMask(f"tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra:
        raise InvalidMask(f"tensor {extra[0]} does not belong in the file ({len(extra)} in all)")
