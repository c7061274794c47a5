"""Image bytes -> checked decode -> normalised tensor [3,H,W]. The same code serves and evaluates.

Bytes -> EXIF rotation -> first frame -> RGB (alpha over white, CMYK converted, 16-bit scaled to 8) -> timm's
evaluation transform.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from timm.data.transforms_factory import create_transform
from torch import Tensor

from smn_core.errors import ImageTooLarge, InvalidImage

# Containers of still images that Pillow decodes itself; nothing that runs a program (EPS) or nests documents.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
# The largest phone cameras make 50 megapixels.
MAX_PIXELS = 51_000_000
DRAFT_FACTOR = 2
MAX_ASPECT = 16
"""Longest side over shortest of what is resized: a PNG of 10,000 x 1 px has 110 bytes, and 3 GB once it is 249 high."""

# Pillow warns of damaged EXIF and the like; what matters raises. Set once: catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # _check_size refuses those


class ImageReader:
    """Image bytes -> float32 [3,H,W], normalised, for one backbone. Safe to call from several threads.

    Args:
        preprocess: timm's `input_size, mean, std, interpolation, crop_pct, crop_mode`.
        max_pixels: images with more are refused from their header.
    """

    def __init__(self, preprocess: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> None:
        self._transform: Callable[[Image.Image], Tensor] = create_transform(**preprocess, is_training=False)
        self._draft_px = draft_side_px(preprocess)
        self._max_pixels = max_pixels
        self._crops_centre = preprocess.get("crop_mode") in (None, "center")
        self.input_px: tuple[int, int] = tuple(preprocess["input_size"][-2:])

    def __call__(self, data: bytes) -> Float32[Tensor, "3 h w"]:
        """Decode, resize, crop and normalise.

        Raises:
            InvalidImage, ImageTooLarge: as `decode`.
        """
        return self.tensor(decode(data, draft_px=self._draft_px, max_pixels=self._max_pixels))

    def tensor(self, image: Image.Image) -> Float32[Tensor, "3 h w"]:
        """The model input of an image that is already RGB."""
        return self._transform(_middle(image) if self._crops_centre else image)


def draft_side_px(preprocess: Mapping[str, Any]) -> int:
    """The least side of a JPEG that is decoded at a reduced scale: twice what the transform resizes to."""
    side_px = max(preprocess["input_size"][-2:])
    return ceil(DRAFT_FACTOR * side_px / (preprocess["crop_pct"] or 1.0))


def _middle(image: Image.Image) -> Image.Image:
    """The middle of a very long image, of which a centre crop keeps less than a sixteenth."""
    width, height = image.size
    short = min(width, height)
    if max(width, height) <= MAX_ASPECT * short:
        return image
    # As much off either end, so that the middle stays where it is.
    left, top = (max(0, side - MAX_ASPECT * short) // 2 for side in (width, height))
    return image.crop((left, top, width - left, height - top))


def decode(data: bytes, *, draft_px: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of an image file, upright, as RGB.

    With `draft_px` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep `draft_px`.

    Raises:
        ImageTooLarge: more than `max_pixels` pixels by its header; nothing is decoded then.
        InvalidImage: not an image, truncated, or pixels without a stated range.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            if draft_px is not None:
                image.draft(None, (draft_px, draft_px))
            image.load()
            _turn_upright(image)
            return _to_rgb(image)
    except InvalidImage:
        raise
    except UnidentifiedImageError as error:
        raise InvalidImage(f"the {len(data)} bytes are not an image of a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image has too many pixels (at most {max_pixels})") from error
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise InvalidImage(f"the image cannot be decoded: {error}") from error


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return  # damaged EXIF names no orientation


def _check_size(image: ImageFile.ImageFile, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"the image is {width} x {height} px, at most {max_pixels} pixels are taken")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _sixteen_to_eight(image)
    if image.mode == "F":
        raise InvalidImage("floating-point images have no stated range: convert to 8 or 16 bits")
    if image.mode == "LAB":
        raise InvalidImage("LAB images are not taken: convert to RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _sixteen_to_eight(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, rounding; Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise InvalidImage("32-bit integer images have no stated range: convert to 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
