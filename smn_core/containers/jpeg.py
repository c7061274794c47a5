"""JPEG before its decode: the segments that its pixels need, and its scans counted."""

from __future__ import annotations

import re
import struct

from smn_core.containers.facts import MAX_PIXELS, Facts, check_size, unknown
from smn_core.errors import ImageTooLarge, InvalidImage

MAGIC = b"\xff\xd8\xff"
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 16 * MAX_PIXELS
"""Every scan goes over all pixels again; encoders write about ten."""
MAX_SEGMENTS = 10_000
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_APP0, _APP1, _APP14, _COM, _SOS, _EOI = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA, 0xD9
# In one pass: with a repeated \xff, a search would go over a run of them once for each of its bytes.
_NEXT = re.compile(rb"\xff([^\x00\xff\x01\xd0-\xd8])", re.DOTALL)
_HERE = re.compile(rb"\xff+([^\x00\xff\x01\xd0-\xd8])", re.DOTALL)
_CMYK = 4


def examine(data: bytes, max_pixels: int) -> Facts:
    """The facts of a JPEG; of several in one file (MPO), those of the first.

    Raises:
        ImageTooLarge: by its header, or too many scans over too many pixels.
        InvalidImage: damaged before its pixels, too many scans or segments, CMYK without a stated sense.
    """
    view, parts, kept = memoryview(data), [memoryview(data)[:2]], set[bytes]()
    at, width, height, components, scans, adobe = 2, 0, 0, 0, 0, False
    for _ in range(MAX_SEGMENTS):
        # Before the first scan the next marker stands right here, but for fill bytes; after it, behind coded samples.
        found = _NEXT.search(data, at) if scans else _HERE.match(data, at)
        if not found or found[1][0] == _EOI or found.end() + 2 > len(data):
            if not scans:
                raise unknown(data)
            break
        marker, body = found[1][0], found.end() + 2
        end = body - 2 + struct.unpack_from(">H", data, body - 2)[0]
        if scans == 0 and _is_needed(marker, data[body : body + 32], kept):
            parts.append(view[found.end() - 2 : end])
        if marker in _SOF and body + 6 <= len(data):
            height, width, components = struct.unpack_from(">HHB", data, body + 1)
            check_size("JPEG", width, height, max_pixels)
        adobe |= marker == _APP14 and data[body : body + 5] == b"Adobe"
        if marker == _SOS:
            if scans == 0:
                parts.append(view[end:])
            scans += 1
            _check_scans(scans, width, height)
        at = end
    else:
        raise InvalidImage(f"the JPEG has more than {MAX_SEGMENTS} segments")
    if components == _CMYK and not adobe:
        raise InvalidImage("a CMYK JPEG without an Adobe marker does not say whether 0 is ink or none: convert to RGB")
    return Facts(b"".join(parts), "JPEG")


def _is_needed(marker: int, body: bytes, kept: set[bytes]) -> bool:
    """Whether a segment before the pixels tells of them: all but comments and applications' data.

    JFIF and Adobe say what the components mean; the first EXIF and the first XMP, how the image is turned.
    """
    if not (_APP0 <= marker <= _APP0 + 15 or marker == _COM):
        return True
    if marker == _APP14 or (marker == _APP0 and body.startswith(b"JFIF\0")):
        return True
    name = body.split(b"\0")[0]
    if marker != _APP1 or name in kept or name not in (b"Exif", b"http://ns.adobe.com/xap/1.0/"):
        return False
    kept.add(name)
    return True


def _check_scans(scans: int, width: int, height: int) -> None:
    if scans > MAX_SCANS:
        raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans")
    if scans * width * height > MAX_SCANNED_PIXELS:
        raise ImageTooLarge(
            f"the JPEG goes over its {width} x {height} px in {scans} scans or more: "
            f"at most {MAX_SCANNED_PIXELS // (width * height)} are taken of this size"
        )
