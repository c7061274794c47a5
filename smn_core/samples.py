"""Decoded samples -> RGB of 8 bits: transparency over white, every depth scaled, never clipped."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image, ImageFile

from smn_core.containers import Facts
from smn_core.errors import InvalidImage

WHITE = 255
_LOW_BYTES = "RGB;16L"
"""Of big-endian samples, which a PNG has, the bytes that Pillow leaves away."""


def load_rgb(image: ImageFile.ImageFile, facts: Facts) -> Image.Image:
    """Decode an open image, as RGB.

    Raises:
        InvalidImage: samples without a stated range, or too few of them.
    """
    if facts.maxval is not None:
        return _rgb_of_ppm(image, facts)
    image.load()
    if image.mode.startswith("I"):
        return _rgb_of_grey(np.asarray(image), facts)
    if image.mode == "F":
        raise InvalidImage("floating-point images have no stated range: convert to 8 or 16 bits")
    if image.mode == "LAB":
        raise InvalidImage("LAB images are not taken: convert to RGB")
    if facts.key is not None:
        return _rgb_of_keyed(image, facts, facts.key)
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    # Premultiplied grey has no way to RGBA but this one.
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _rgb_of_grey(values: ndarray, facts: Facts) -> Image.Image:
    """Grey of up to 16 bits, as Pillow keeps it in a mode that it cannot convert: scaled to 255, rounded."""
    bits = facts.bits if facts.kind == "TIFF" else 16
    top = (1 << bits) - 1
    # A table: one look-up for every pixel, whatever its depth means.
    table = ((np.arange(1 << 16, dtype=np.uint32).clip(max=top) * WHITE + top // 2) // top).astype(np.uint8)
    if facts.inverted:
        table = WHITE - table
    if facts.key is not None:
        table[facts.key[0]] = WHITE
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > top):
        raise InvalidImage("32-bit integer images have no stated range: convert to 8 or 16 bits")
    return Image.fromarray(table[values]).convert("RGB")


def _rgb_of_keyed(image: ImageFile.ImageFile, facts: Facts, key: tuple[int, ...]) -> Image.Image:
    """A PNG of up to 16 bits whose samples `key` are transparent."""
    if len(key) == 1:
        grey = np.asarray(image.convert("L"))
        transparent = grey == key[0] * WHITE // ((1 << facts.bits) - 1)
        return Image.fromarray(np.where(transparent, np.uint8(WHITE), grey)).convert("RGB")
    values = np.array(image)
    transparent = np.ones(values.shape[:2], bool)
    for channel, sample in enumerate(key):
        transparent &= values[..., channel] == (sample >> 8 if facts.bits > 8 else sample)
    if facts.bits > 8 and transparent.any():
        low = _low_bytes(facts)
        for channel, sample in enumerate(key):
            transparent &= low[..., channel] == sample & 0xFF
    values[transparent] = WHITE
    return Image.fromarray(values)


def _low_bytes(facts: Facts) -> ndarray:
    """The lower bytes of a PNG's RGB samples of 16 bits, by a second decode."""
    with Image.open(io.BytesIO(facts.data), formats=("PNG",)) as again:
        again.tile = [tile._replace(args=_LOW_BYTES) for tile in again.tile]
        again.load()
        return np.asarray(again)


def _rgb_of_ppm(image: ImageFile.ImageFile, facts: Facts) -> Image.Image:
    """A binary PGM or PPM: Pillow scales all but two depths in Python, a microsecond a sample."""
    maxval: Any = facts.maxval
    width, height = image.size
    channels = 3 if image.mode == "RGB" else 1
    dtype = np.dtype(np.uint8 if maxval < 256 else ">u2")
    offset = image.tile[0].offset
    if len(facts.data) - offset < width * height * channels * dtype.itemsize:
        raise InvalidImage("the PPM is truncated")
    values = np.frombuffer(facts.data, dtype, width * height * channels, offset).reshape(height, width, channels)
    if maxval != WHITE:
        table = (np.arange(maxval + 1, dtype=np.uint32) * WHITE + maxval // 2) // maxval
        values = table.astype(np.uint8)[np.minimum(values, maxval)]
    return Image.fromarray(values[..., 0] if channels == 1 else values).convert("RGB")
