"""What is known of an image before it is decoded, and the bounds of a decode."""

from __future__ import annotations

from dataclasses import dataclass

from smn_core.errors import ImageTooLarge, InvalidImage

MAX_PIXELS = 51_000_000
"""The largest phone cameras make 50 megapixels."""
MAX_PIXELS_OF = {
    "PNG": 36_000_000,
    "GIF": 36_000_000,
    "BMP": 36_000_000,
    "DIB": 36_000_000,
    "TIFF": 36_000_000,
    "PPM": 36_000_000,
    "WEBP": 16_000_000,
    "AVIF": 12_000_000,
    "HEIF": 25_000_000,
    "JPEG2000": 2_000_000,
}
"""So many that a decode takes about a second of one core and half a gigabyte: docs/operations.md has the table."""
QUICK_PART = 4
"""An image with more than one in so many of the pixels that its format may have is slow: over a quarter of a second."""
MAX_SLOW_PIXELS = 250_000
"""Of what Pillow decodes in Python, sample by sample, while nothing else runs: PPM as text, BMP by run lengths."""


@dataclass(frozen=True)
class Facts:
    """An image file that a decoder may have, and what its samples mean where Pillow forgets it.

    Args:
        data: the file without what its pixels do not need.
        kind: Pillow's name of the format.
        orientation: 1 to 8 if the container itself says it; else None, and EXIF does.
        key: the sample, or the three, that a PNG calls transparent, in the file's own depth.
        bits: of one sample in the file, where that matters.
        inverted: 0 is white although Pillow does not know.
        maxval: the sample that is white, of a PPM.
    """

    data: bytes
    kind: str
    orientation: int | None = None
    key: tuple[int, ...] | None = None
    bits: int = 8
    inverted: bool = False
    maxval: int | None = None


def unknown(data: bytes) -> InvalidImage:
    """The refusal of bytes that name no format, or are damaged before their pixels begin."""
    return InvalidImage(f"the {len(data)} bytes are not an image of a known format")


def check_size(kind: str, width: int, height: int, max_pixels: int, *, heavy: bool = False) -> None:
    """Refuse an image by its declared size.

    Args:
        kind: the format.
        width, height: in pixels.
        max_pixels: of any image.
        heavy: pixels of 16 bits or with alpha, of which the format may have half as many.

    Raises:
        ImageTooLarge: more pixels than `max_pixels`, or than this format may have.
    """
    least = MAX_PIXELS_OF.get(kind, max_pixels) // (2 if heavy and kind in MAX_PIXELS_OF else 1)
    if width * height > min(max_pixels, least):
        of = f", {least} of {kind}{' with 16 bits or alpha' if heavy else ''}" if least < max_pixels else ""
        raise ImageTooLarge(f"the image is {width} x {height} px, at most {max_pixels} pixels are taken{of}")


def is_quick(kind: str, width: int, height: int) -> bool:
    """Whether a decode is expected to take a quarter of a second of one core at most."""
    return width * height * QUICK_PART <= MAX_PIXELS_OF.get(kind, MAX_PIXELS)


def check_slow(what: str, width: int, height: int) -> None:
    """Refuse more than `MAX_SLOW_PIXELS` of a form that is decoded sample by sample.

    Raises:
        ImageTooLarge: more pixels than that.
    """
    if width * height > MAX_SLOW_PIXELS:
        raise ImageTooLarge(f"the image is {width} x {height} px, at most {MAX_SLOW_PIXELS} of {what} are taken")
