"""JPEG 2000 before its decode: a small picture, plainly coded, of samples that Pillow reads rightly.

The decoder holds the interpreter while it works, so its bounds are the narrowest of all.
"""

from __future__ import annotations

import struct

from smn_core.containers.facts import Facts, check_size, unknown
from smn_core.errors import ImageTooLarge, InvalidImage

MAGICS = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
MAX_COMPONENTS = 4
MAX_TILES = 1024
MAX_LAYERS = 100
MAX_BOXES = 1000
MIN_BLOCK = 8
"""Least sum of the exponents of a code block's sides: 16 x 16. Encoders write 64 x 64; one of 4 x 4 costs as much."""
MAX_PRECINCTS = 4096
"""Of a component, over all resolutions. Of 2 megapixels, encoders write about 100, or one a resolution."""
_SIZ, _COD, _COC, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_SRGB, _GREY, _SYCC, _CMYK = 16, 17, 18, 12


def examine(data: bytes, max_pixels: int) -> Facts:
    """The facts of a JP2 file or a bare codestream.

    Raises:
        ImageTooLarge: by its header.
        InvalidImage: damaged before its pixels, coded so that a small picture costs much, or samples that are misread.
    """
    try:
        start = 0 if data.startswith(MAGICS[0]) else _codestream(data)
        _check_header(data, start, max_pixels)
    except struct.error as error:
        raise unknown(data) from error
    return Facts(data, "JPEG2000")


def _codestream(data: bytes) -> int:
    """The offset of the codestream of a JP2 file, whose colours are looked at on the way."""
    at, end = 12, len(data)
    for _ in range(MAX_BOXES):
        size, name = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        after = at + size if size else end
        if name == b"jp2c":
            return body
        if name == b"jp2h":
            after = body  # look into it
        elif name == b"colr" and data[body : body + 1] == b"\1":
            (space,) = struct.unpack_from(">I", data, body + 3)
            if space not in (_SRGB, _GREY, _SYCC, _CMYK):
                raise InvalidImage(f"JPEG 2000 of colour space {space} is not taken: convert to RGB")
        if after <= at:
            raise unknown(data)
        at = after
    raise unknown(data)


def _check_header(data: bytes, start: int, max_pixels: int) -> None:
    at, size = start + 2, (0, 0)
    while True:
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _SOT:
            break
        if marker == _SIZ:
            size = _check_samples(data, at + 4, max_pixels)
        elif marker in (_COD, _COC):
            _check_coding(data, at + 4, length - 2, size, own=marker == _COC)
        elif not 0xFF50 <= marker <= 0xFF6F or length < 2:
            raise unknown(data)
        at += 2 + length
    if size == (0, 0):
        raise unknown(data)
    _check_parts(data, at)


def _check_samples(data: bytes, at: int, max_pixels: int) -> tuple[int, int]:
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, n = struct.unpack_from(">8IH", data, at + 2)
    width, height = right - left, bottom - top
    check_size("JPEG2000", width, height, max_pixels)
    if n > MAX_COMPONENTS:
        raise InvalidImage(f"the JPEG 2000 has {n} components, at most {MAX_COMPONENTS} are taken")
    if not (tile_width and tile_height):
        raise unknown(data)
    n_tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    if n_tiles > MAX_TILES:
        raise ImageTooLarge(f"the JPEG 2000 has {n_tiles} tiles, at most {MAX_TILES} are taken")
    depths = {struct.unpack_from(">B", data, at + 36 + 3 * i)[0] for i in range(n)}
    if len(depths) != 1 or not 8 <= min(depths) + 1 <= 16:  # a sign is the highest bit
        bits = ", ".join(f"{(depth & 0x7F) + 1}{' signed' if depth & 0x80 else ''}" for depth in sorted(depths))
        raise InvalidImage(f"JPEG 2000 of {bits} bits is not taken: convert to 8 or 16 bits for all components")
    return width, height


def _check_coding(data: bytes, at: int, length: int, size: tuple[int, int], *, own: bool) -> None:
    """COD, or `own`: COC, of one component."""
    style = data[at + 1] if own and at + 1 < len(data) else data[at] if at < len(data) else 0
    if not own and struct.unpack_from(">H", data, at + 2)[0] > MAX_LAYERS:
        raise InvalidImage(f"the JPEG 2000 has more than {MAX_LAYERS} layers")
    first = at + (2 if own else 5)
    levels, block_width, block_height = struct.unpack_from(">BBB", data, first)
    if block_width + 2 + block_height + 2 < MIN_BLOCK:
        raise InvalidImage("the JPEG 2000 is coded in blocks of less than 16 x 16 samples")
    sides = data[first + 5 : at + length] if style & 1 else b""  # from the lowest resolution on
    n_precincts = 0
    for level, side in enumerate(sides[: levels + 1]):
        across, down = (1 << levels - level + exponent for exponent in (side & 15, side >> 4))
        n_precincts += -(-size[0] // across) * -(-size[1] // down)
    if n_precincts > MAX_PRECINCTS:
        raise InvalidImage(f"the JPEG 2000 is cut into {n_precincts} precincts, at most {MAX_PRECINCTS} are taken")


def _check_parts(data: bytes, at: int) -> None:
    """The headers of the parts of tiles, which may say all again."""
    for _ in range(64 * MAX_TILES):
        if data[at : at + 2] != struct.pack(">H", _SOT):
            return
        (size,) = struct.unpack_from(">I", data, at + 6)
        if data[at + 12 : at + 14] in (struct.pack(">H", _COD), struct.pack(">H", _COC)):
            raise InvalidImage("the JPEG 2000 codes one tile otherwise than the rest")
        if size == 0:
            return
        at += size
