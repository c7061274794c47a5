"""PNG before its decode: only the chunks that its pixels and their orientation need are left."""

from __future__ import annotations

import struct
import zlib

from smn_core.containers.facts import Facts, check_size, unknown
from smn_core.errors import InvalidImage

MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 65_536
"""libpng writes one for every 8 KiB: 512 MiB."""
MAX_EXIF_BYTES = 65_536
_KNOWN = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_ORIENTING_TEXT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_GREY, _RGB, _GREY_ALPHA = 0, 2, 4


def examine(data: bytes, max_pixels: int) -> Facts:
    """The facts of a PNG; of an animated one, those of the image that is shown where animations are not.

    Raises:
        ImageTooLarge: by its header.
        InvalidImage: damaged before its pixels, a chunk that must be understood and is not, too many chunks.
    """
    if data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\x0d" or len(data) < 33:
        raise unknown(data)
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    check_size("PNG", width, height, max_pixels, heavy=bits > 8 or colour >= _GREY_ALPHA)
    view, key, kept = memoryview(data), None, set[bytes]()
    heading, pixels = [view[:33]], list[memoryview]()
    at, chunks = 33, 0
    while at + 8 <= len(data):
        (length,), name = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        end, chunks = at + 12 + length, chunks + 1
        if chunks > MAX_CHUNKS:
            raise InvalidImage(f"the PNG has more than {MAX_CHUNKS} chunks")
        if not name.isalpha():
            break  # as if the file ended here
        if name in (b"IDAT", b"IEND"):
            pixels.append(view[at:end])
            if name == b"IEND":
                break
        elif name in (b"PLTE", b"tRNS"):
            if name not in kept and not pixels:  # a later one changes nothing
                heading.append(view[at:end])
                if name == b"tRNS":
                    key = _key(data[at + 8 : at + 8 + length], bits, colour)
                    check_size("PNG", width, height, max_pixels, heavy=True)
            kept.add(name)
        elif name[:1].isupper() and name not in _KNOWN:
            raise InvalidImage(f"the PNG has a chunk {name.decode()} that changes its pixels and is not known")
        elif name not in kept and _tells_orientation(name, data, at + 8, length):
            kept.add(name)
            heading.append(view[at:end])
        at = end
    return Facts(b"".join(heading + pixels), "PNG", key=key, bits=bits)


def _key(body: bytes, bits: int, colour: int) -> tuple[int, ...] | None:
    """What is transparent, as samples of the file; None where alpha is given in another way."""
    n_samples = {_GREY: 1, _RGB: 3}.get(colour)
    if n_samples is None:
        return None
    if len(body) < 2 * n_samples:
        raise InvalidImage("the PNG's tRNS chunk is truncated")
    # The standard: of 16 bits the lowest are used.
    return tuple(sample & ((1 << bits) - 1) for sample in struct.unpack_from(f">{n_samples}H", body))


def _tells_orientation(name: bytes, data: bytes, start: int, length: int) -> bool:
    """Whether Pillow can read an orientation from an undamaged, small chunk."""
    if length > MAX_EXIF_BYTES:
        return False
    body, checksum = data[start : start + length], data[start + length : start + length + 4]
    if checksum != struct.pack(">I", zlib.crc32(name + body)):
        return False
    if name == b"zTXt" and body.startswith(_ORIENTING_TEXT):
        unpacker = zlib.decompressobj()
        try:
            unpacker.decompress(body[body.index(b"\0") + 2 :], MAX_EXIF_BYTES)
        except zlib.error:
            return False
        return not unpacker.unconsumed_tail
    if name == b"iTXt":
        return body.startswith(_ORIENTING_TEXT[0] + b"\0\0")  # not compressed
    return name == b"eXIf" or (name == b"tEXt" and body.startswith(_ORIENTING_TEXT))
