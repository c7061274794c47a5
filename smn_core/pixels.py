"""Image bytes -> checked decode -> RGB pixels of a model's input size. Without torch: decode workers start with it.

Bytes -> first frame -> RGB (alpha over white, CMYK converted, 16-bit scaled to 8) -> EXIF rotation -> the resize and
crop of timm's evaluation transform, to the last bit.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from smn_core.containers import MAX_PIXELS, check_size, examine, unknown
from smn_core.containers.facts import is_quick
from smn_core.errors import ImageTooLarge, InvalidImage
from smn_core.heif import KIND as HEIF
from smn_core.heif import NEEDED, teach_pillow
from smn_core.samples import load_rgb

DRAFT_FACTOR = 2
MAX_ASPECT = 16
"""Longest side over shortest of what is resized: a PNG of 10,000 x 1 px has 110 bytes, and 3 GB once it is 249 high."""
CROP_PCT = 0.875
"""timm's, where a model says none."""

# Pillow warns of damaged EXIF and the like; what matters raises. Set once: catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # check_size refuses those

ORIENTATION = 0x0112
READS_HEIF = teach_pillow()
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Slow(Exception):
    """An image that is worth decoding, but not in the place of a quick one."""


class PixelReader:
    """Image bytes -> RGB of a backbone's input size. Safe to call from several threads.

    Args:
        preprocess: timm's `input_size, mean, interpolation, crop_pct, crop_mode`.
        max_pixels: images with more are refused from their header.
    """

    def __init__(self, preprocess: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> None:
        self._draft_px = draft_side_px(preprocess)
        self._max_pixels = max_pixels
        self._mode = preprocess.get("crop_mode")
        self._filter = Image.Resampling[preprocess["interpolation"].upper()]
        height, width = preprocess["input_size"][-2:]
        self.input_px: tuple[int, int] = (height, width)
        crop_pct = preprocess["crop_pct"] or CROP_PCT
        self._scaled = math.floor(height / crop_pct), math.floor(width / crop_pct)
        self._fill = tuple(round(255 * value) for value in preprocess["mean"]) if self._mode == "border" else (0, 0, 0)

    def __call__(self, data: bytes, *, only_quick: bool = False) -> Image.Image:
        """Decode, resize and crop; with `only_quick` nothing that is expected to take long.

        Raises:
            InvalidImage, ImageTooLarge: as `decode`.
            Slow: with `only_quick`; nothing was decoded.
        """
        return self.fit(decode(data, draft_px=self._draft_px, max_pixels=self._max_pixels, only_quick=only_quick))

    def fit(self, image: Image.Image) -> Image.Image:
        """An RGB image, resized and cropped to the input size."""
        if self._mode in (None, "center"):
            image = _middle(image)
        size = self._resized(*image.size)
        return self._crop(image if image.size == size else image.resize(size, self._filter))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the crop."""
        scaled_height, scaled_width = self._scaled
        if self._mode == "squash":
            return scaled_width, scaled_height
        if self._mode != "border" and scaled_height == scaled_width:
            # torchvision rounds down where timm rounds to the nearest.
            long = int(scaled_width * max(width, height) / min(width, height))
            return (scaled_width, long) if width <= height else (long, scaled_width)
        ratios = height / scaled_height, width / scaled_width
        ratio = max(ratios) if self._mode == "border" else min(ratios)
        return round(width / ratio), round(height / ratio)

    def _crop(self, image: Image.Image) -> Image.Image:
        """The centre; what is missing of it is filled, with one pixel more behind the image than before it if odd."""
        height, width = self.input_px
        missing = max(0, width - image.width), max(0, height - image.height)
        if any(missing):
            filled = Image.new("RGB", (image.width + missing[0], image.height + missing[1]), self._fill)
            filled.paste(image, (missing[0] // 2, missing[1] // 2))
            image = filled
        left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
        return image.crop((left, top, left + width, top + height))


def draft_side_px(preprocess: Mapping[str, Any]) -> int:
    """The least side of a JPEG that is decoded at a reduced scale: twice what the transform resizes to."""
    side_px = max(preprocess["input_size"][-2:])
    return math.ceil(DRAFT_FACTOR * side_px / (preprocess["crop_pct"] or 1.0))


def _middle(image: Image.Image) -> Image.Image:
    """The middle of a very long image, of which a centre crop keeps less than a sixteenth."""
    width, height = image.size
    short = min(width, height)
    if max(width, height) <= MAX_ASPECT * short:
        return image
    # As much off either end, so that the middle stays where it is.
    left, top = (max(0, side - MAX_ASPECT * short) // 2 for side in (width, height))
    return image.crop((left, top, width - left, height - top))


def decode(
    data: bytes, *, draft_px: int | None = None, max_pixels: int = MAX_PIXELS, only_quick: bool = False
) -> Image.Image:
    """The first frame of an image file, upright, as RGB.

    With `draft_px` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep `draft_px`.

    Raises:
        ImageTooLarge: by its header more pixels than `max_pixels`, or than its format may have; nothing is decoded.
            Or it took more memory than this process may have.
        InvalidImage: not an image, truncated, or pixels whose meaning is not stated or not read.
        Slow: with `only_quick`, an image that is expected to take long; nothing was decoded.
    """
    try:
        facts = examine(data, max_pixels)
        if facts.kind == HEIF and not READS_HEIF:
            raise InvalidImage(NEEDED)
        with Image.open(io.BytesIO(facts.data), formats=(facts.kind,)) as image:
            check_size(facts.kind, *image.size, max_pixels, heavy=facts.kind == HEIF and "A" in image.mode)
            if only_quick and not is_quick(facts.kind, *image.size):
                raise Slow
            if draft_px is not None:
                image.draft(None, (draft_px, draft_px))
            rgb = load_rgb(image, facts)
            turn = _TURNS.get(_orientation(image) if facts.orientation is None else facts.orientation)
        return rgb if turn is None else rgb.transpose(turn)
    except (InvalidImage, Slow):
        raise
    except UnidentifiedImageError as error:
        raise unknown(data) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image has too many pixels (at most {max_pixels})") from error
    except MemoryError as error:
        raise ImageTooLarge("the image takes more memory than its decode may have") from error
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise InvalidImage(f"the image cannot be decoded: {error}") from error


def _orientation(image: Image.Image) -> int:
    """How EXIF says that an image is turned, 1 to 8; 1 if it says nothing that can be read."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
        return orientation if orientation in _TURNS else 1
    except Exception:  # damaged metadata raise what they lead Pillow to, and pixels need none of them
        return 1
