"""Image bytes -> checked decode -> normalised tensor [3,H,W]. The same code serves and evaluates.

Bytes -> first frame -> RGB (alpha over white, CMYK converted, 16-bit scaled to 8) -> EXIF rotation -> timm's
evaluation transform.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from jaxtyping import Float32
from PIL import Image, UnidentifiedImageError
from timm.data.transforms_factory import create_transform
from torch import Tensor

from smn_core.containers import MAX_PIXELS, check_size, examine, unknown
from smn_core.errors import ImageTooLarge, InvalidImage
from smn_core.samples import load_rgb

DRAFT_FACTOR = 2
MAX_ASPECT = 16
"""Longest side over shortest of what is resized: a PNG of 10,000 x 1 px has 110 bytes, and 3 GB once it is 249 high."""

# Pillow warns of damaged EXIF and the like; what matters raises. Set once: catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # check_size refuses those

ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
        ImageTooLarge: by its header more pixels than `max_pixels`, or than its format may have; nothing is decoded.
        InvalidImage: not an image, truncated, or pixels whose meaning is not stated or not read.
    """
    try:
        facts = examine(data, max_pixels)
        with Image.open(io.BytesIO(facts.data), formats=(facts.kind,)) as image:
            check_size(facts.kind, *image.size, max_pixels)
            if draft_px is not None:
                image.draft(None, (draft_px, draft_px))
            rgb = load_rgb(image, facts)
            turn = _TURNS.get(_orientation(image) if facts.orientation is None else facts.orientation)
        return rgb if turn is None else rgb.transpose(turn)
    except InvalidImage:
        raise
    except UnidentifiedImageError as error:
        raise unknown(data) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image has too many pixels (at most {max_pixels})") from error
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise InvalidImage(f"the image cannot be decoded: {error}") from error


def _orientation(image: Image.Image) -> int:
    """How EXIF says that an image is turned, 1 to 8; 1 if it says nothing that can be read."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
        return orientation if orientation in _TURNS else 1
    except Exception:  # damaged metadata raise what they lead Pillow to, and pixels need none of them
        return 1
