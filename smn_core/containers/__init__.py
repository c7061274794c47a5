"""Image files before their decode: what is needed of them, what it means, and whether its cost is bounded.

Nothing here decodes. Every examination is linear in the file and holds one copy of it at most.
"""

from __future__ import annotations

from collections.abc import Callable

from smn_core.containers import isobmff, jpeg, jpeg2000, others, png, tiff
from smn_core.containers.facts import MAX_PIXELS, Facts, check_size, unknown

__all__ = ["MAX_PIXELS", "Facts", "check_size", "examine", "unknown"]

# Containers of still images that Pillow decodes itself; nothing that runs a program (EPS) or nests documents.
_EXAMINATIONS: tuple[tuple[tuple[bytes, ...], Callable[[bytes, int], Facts]], ...] = (
    ((jpeg.MAGIC,), jpeg.examine),
    ((png.MAGIC,), png.examine),
    ((b"GIF87a", b"GIF89a"), others.examine_gif),
    ((b"BM",), others.examine_bmp),
    (tiff.MAGICS, tiff.examine),
    (jpeg2000.MAGICS, jpeg2000.examine),
    (tuple(b"P%d" % kind for kind in range(1, 7)), others.examine_ppm),
    ((b"Pf",), others.examine_ppm),
)


def examine(data: bytes, max_pixels: int = MAX_PIXELS) -> Facts:
    """The facts of an image file.

    Raises:
        ImageTooLarge: more than `max_pixels` pixels by its header, or than its format may have.
        InvalidImage: no known format, damaged before its pixels, or its samples or their cost are not taken.
    """
    for magics, examination in _EXAMINATIONS:
        if data.startswith(magics):
            return examination(data, max_pixels)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return others.examine_webp(data, max_pixels)
    if (kind := isobmff.kind_of(data)) is not None:
        return isobmff.examine(data, kind)
    if others.is_dib(data):
        return others.examine_bmp(data, max_pixels)
    raise unknown(data)
