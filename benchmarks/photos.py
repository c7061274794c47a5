"""Photos for benchmarks: what decoding costs depends on their size."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photo(width_px: int = 500, height_px: int = 375) -> bytes:
    """A JPEG of smooth noise."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width_px, height_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
