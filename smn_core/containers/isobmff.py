"""AVIF and HEIF before their decode: one container, two codecs. Its brands tell which."""

from __future__ import annotations

import re
import struct

from smn_core.containers.facts import Facts
from smn_core.errors import ImageTooLarge

AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
EITHER_BRANDS = frozenset({b"mif1", b"mif2", b"msf1"})
"""Brands of the container alone: the brands that follow name the codec."""
MAX_BRANDS_BYTES = 1024
MAX_HEIF_BYTES = 12 * 2**20
"""A HEIF costs by its bytes as much as by its pixels: a phone's photo of 24 megapixels has 2 to 5 MB."""
UPRIGHT = 1
_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{3}.{4}|\x03.{3}.{6}))Exif", re.DOTALL)


def kind_of(data: bytes) -> str | None:
    """`AVIF` or `HEIF` by the brands of a file; None: it is neither."""
    if data[4:8] != b"ftyp":
        return None
    major = data[8:12]
    size = min(struct.unpack_from(">I", data)[0], MAX_BRANDS_BYTES)
    brands = {data[at : at + 4] for at in range(16, size - 3, 4)}
    if major in AVIF_BRANDS or (major in EITHER_BRANDS and brands & AVIF_BRANDS):
        return "AVIF"
    if major in HEIF_BRANDS or (major in EITHER_BRANDS and brands & HEIF_BRANDS):
        return "HEIF"
    # Written by an encoder that names no codec at all: the AVIF decoder says what is wrong with it.
    return "AVIF" if major in EITHER_BRANDS else None


def examine(data: bytes, kind: str) -> Facts:
    """The facts of an AVIF or HEIF, without its EXIF: a container of this kind says itself how it is turned.

    Its size lies deep in boxes that the decoder reads without the pixels; it is checked when the file is open. The
    decoder of HEIF turns the pixels itself.

    Raises:
        ImageTooLarge: a HEIF of more than `MAX_HEIF_BYTES`.
    """
    if kind == "HEIF" and len(data) > MAX_HEIF_BYTES:
        raise ImageTooLarge(f"the HEIF has {len(data)} bytes, at most {MAX_HEIF_BYTES} are taken")
    (size,) = struct.unpack_from(">I", data)
    head = data[size:]  # behind ftyp; meta comes next
    meta = struct.unpack_from(">I", head)[0] if head[4:8] == b"meta" else 0
    kept = data[:size] + _EXIF_ITEM.sub(rb"\1skip", head[:meta]) + head[meta:]
    return Facts(kept, kind, orientation=UPRIGHT if kind == "HEIF" else None)
