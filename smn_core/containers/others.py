"""GIF, BMP, PPM and WebP before their decode."""

from __future__ import annotations

import re
import struct

from smn_core.containers.facts import Facts, check_size, check_slow, unknown
from smn_core.errors import InvalidImage

MAX_BLOCKS = 65_536
"""Blocks of 255 bytes before a GIF's first frame: comments and the like."""
MAX_HEADER_BYTES = 65_536
_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_RUN_LENGTHS = (1, 2)
_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])"
_PPM = re.compile(rb"P([1-6])" + (_SPACE + rb"+(\d{1,9})") * 2)
_MAXVAL = re.compile(_SPACE + rb"+(\d{1,5})\s")


def examine_gif(data: bytes, max_pixels: int) -> Facts:
    """The facts of a GIF, with the first frame's transparency, without what else stands before the frame."""
    if len(data) < 13:
        raise unknown(data)
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    check_size("GIF", width, height, max_pixels)
    at = start = 13 + (3 << ((flags & 7) + 1) if flags & 128 else 0)
    control, blocks = b"", 0
    try:
        while data[at] == ord("!"):
            begin, kind = at, data[at + 1]
            at += 2
            while data[at]:
                at += 1 + data[at]
                blocks += 1
                if blocks > MAX_BLOCKS:
                    raise InvalidImage(f"the GIF has more than {MAX_BLOCKS} blocks before its first frame")
            at += 1
            control = data[begin:at] if kind == 0xF9 else control
        if data[at] != ord(","):
            raise unknown(data)
        x, y, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
    except (IndexError, struct.error) as error:
        raise unknown(data) from error
    check_size("GIF", max(width, x + frame_width), max(height, y + frame_height), max_pixels)
    return Facts(b"".join((data[:start], control, memoryview(data)[at:])), "GIF")


def examine_bmp(data: bytes, max_pixels: int) -> Facts:
    """The facts of a BMP, or of a DIB: the same without its file header."""
    kind, at = ("BMP", 14) if data.startswith(b"BM") else ("DIB", 0)
    try:
        (size,) = struct.unpack_from("<I", data, at)
        if size == _HEADER_SIZES[0]:
            width, height, run_lengths = *struct.unpack_from("<HH", data, at + 4), False
        else:
            width, height = struct.unpack_from("<ii", data, at + 4)
            run_lengths = struct.unpack_from("<I", data, at + 16)[0] in _RUN_LENGTHS
    except struct.error as error:
        raise unknown(data) from error
    check_size(kind, abs(width), abs(height), max_pixels)
    if run_lengths:
        check_slow("BMP by run lengths", abs(width), abs(height))
    return Facts(data, kind)


def is_dib(data: bytes) -> bool:
    """Whether bytes begin with the size of a DIB's header: it has no other magic."""
    return len(data) >= 16 and struct.unpack_from("<I", data)[0] in _HEADER_SIZES


def examine_ppm(data: bytes, max_pixels: int) -> Facts:
    """The facts of a PBM, PGM or PPM, with the value that is white."""
    if data.startswith(b"Pf"):
        raise InvalidImage("floating-point images have no stated range: convert to 8 or 16 bits")
    found = _PPM.match(data, 0, MAX_HEADER_BYTES)
    if not found:
        raise unknown(data)
    kind, width, height = (int(field) for field in found.groups())
    check_size("PPM", width, height, max_pixels)
    if kind < 4:
        check_slow("PPM as text", width, height)
    if kind not in (5, 6):
        return Facts(data, "PPM")
    white = _MAXVAL.match(data, found.end(), MAX_HEADER_BYTES)
    if not white or not 0 < int(white[1]) < 65536:
        raise unknown(data)
    check_size("PPM", width, height, max_pixels, heavy=int(white[1]) > 255)
    return Facts(data, "PPM", maxval=int(white[1]))


def examine_webp(data: bytes, max_pixels: int) -> Facts:
    """The facts of a WebP: its canvas, for which Pillow takes memory as soon as it opens the file."""
    kind = data[12:16]
    try:
        if kind == b"VP8X":
            low, high, low2, high2 = struct.unpack_from("<HBHB", data, 24)
            width, height = (low | high << 16) + 1, (low2 | high2 << 16) + 1
        elif kind == b"VP8L":
            (sides,) = struct.unpack_from("<I", data, 21)
            width, height = (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
        elif kind == b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        else:
            raise unknown(data)
    except struct.error as error:
        raise unknown(data) from error
    check_size("WEBP", width, height, max_pixels)
    return Facts(data, "WEBP")
