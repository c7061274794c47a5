"""Pixels without torch are bit for bit those of timm's evaluation transform, and memory and time have an end."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import create_transform

from smn_core import pixels
from smn_core.errors import ImageTooLarge
from smn_core.images import ImageReader
from smn_core.pixels import MAX_ASPECT, PixelReader, Slow

PREPROCESS = {
    "input_size": (3, 32, 32),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
}


def encode(image, fmt, **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


sides = st.integers(24, 41)


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    input_px=st.one_of(st.tuples(sides, sides), sides.map(lambda side: (side, side))),
    crop_mode=st.sampled_from([None, "center", "squash", "border"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]),
    crop_pct=st.sampled_from([None, 0.5, 0.875, 0.9, 0.95, 1.0, 1.1]),
    seed=st.integers(0, 9),
)
def test_every_size_and_crop_is_timms_to_the_last_bit(size, input_px, crop_mode, interpolation, crop_pct, seed):
    width, height = size
    if max(size) > MAX_ASPECT * min(size):
        size = width, height = max(size), max(size)  # of very long images only the middle is resized
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))
    preprocess = {
        **PREPROCESS,
        "input_size": (3, *input_px),
        "crop_mode": crop_mode,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }
    expected = create_transform(**preprocess, is_training=False)(image)
    assert torch.equal(ImageReader(preprocess).tensor(image), expected)


def test_many_images_are_normalised_as_each_of_them():
    reader, rng = ImageReader(PREPROCESS), np.random.default_rng(0)
    found = rng.integers(0, 255, (5, 32, 32, 3), np.uint8)
    each = [create_transform(**PREPROCESS, is_training=False).transforms[-2:] for _ in found]
    expected = torch.stack([normalise(to_tensor(x)) for x, (to_tensor, normalise) in zip(found, each, strict=True)])
    assert torch.equal(reader.normalise(found), expected)


@pytest.mark.parametrize(
    ("fmt", "quick_px", "slow_px"), [("PNG", (3000, 3000), (3001, 3000)), ("JPEG", (4032, 3024), (4400, 3000))]
)
def test_what_is_slow_by_its_header_is_not_begun(fmt, quick_px, slow_px):
    reader = PixelReader(PREPROCESS)
    assert reader(encode(Image.new("RGB", quick_px), fmt), only_quick=True).size == (32, 32)
    slow = encode(Image.new("RGB", slow_px), fmt)
    with pytest.raises(Slow):
        reader(slow, only_quick=True)
    assert reader(slow).size == (32, 32)


def test_a_decode_that_gets_no_memory_says_so(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(pixels, "load_rgb", fail)
    with pytest.raises(ImageTooLarge, match="more memory than its decode may have"):
        PixelReader(PREPROCESS)(encode(Image.new("RGB", (4, 4)), "PNG"))


def test_pixels_and_decode_workers_come_without_torch():
    code = "import sys, service.decoding.forker; print(sorted({'torch', 'timm', 'jaxtyping'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
