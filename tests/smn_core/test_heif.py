"""HEIC photos are read as their pixels are: upright, over white, bounded before they are decoded."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from smn_core.containers import examine, isobmff
from smn_core.errors import ImageTooLarge, InvalidImage
from smn_core.images import ImageReader, decode

PREPROCESS = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
QUARTERS = np.zeros((48, 64, 3), np.uint8)
QUARTERS[:24, :32], QUARTERS[:24, 32:], QUARTERS[24:, :32] = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def heic(pixels: np.ndarray = QUARTERS, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "HEIF", **{"quality": 95, "chroma": 444, **options})
    return file.getvalue()


def close(found: Image.Image, expected: np.ndarray) -> bool:
    return bool(np.abs(np.asarray(found).astype(int) - expected).mean() < 4)


def test_a_heic_photo_is_its_pixels():
    assert examine(heic()).kind == "HEIF"
    assert close(decode(heic()), QUARTERS)


def test_a_heic_photo_in_tiles_as_phones_write_them_is_read_whole():
    pixels = np.tile(QUARTERS, (3, 3, 1))
    assert close(decode(heic(pixels, tile_size=64)), pixels)


def test_a_heic_photo_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert close(decode(heic(exif=exif.tobytes())), np.rot90(QUARTERS, 3))


def test_damaged_exif_of_a_heic_refuses_nothing():
    sound = Image.Exif()
    sound[0x010F] = "a maker of cameras, with a name of some length"
    body = sound.tobytes().removeprefix(b"Exif\0\0")
    data = heic(exif=sound.tobytes())
    assert data.count(body) == 1
    assert decode(data.replace(body, b"\xff" * len(body))).size == (64, 48)


def test_a_heic_photo_lies_over_white_where_it_is_transparent():
    rgba = np.dstack([QUARTERS, np.full((48, 64), 255, np.uint8)])
    rgba[24:, 32:, 3] = 0
    found = np.asarray(decode(heic(rgba)))
    assert (found[30:, 40:] > 245).all() and close(Image.fromarray(found[:20, :28]), QUARTERS[:20, :28])


def test_the_reader_that_serves_and_trains_takes_a_heic():
    assert ImageReader(PREPROCESS)(heic()).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("major", "others", "kind"),
    [
        (b"heic", b"mif1heic", "HEIF"),
        (b"heix", b"mif1", "HEIF"),
        (b"mif1", b"mif1heic", "HEIF"),
        (b"msf1", b"hevc", "HEIF"),
        (b"avif", b"mif1avif", "AVIF"),
        (b"mif1", b"avifmif1", "AVIF"),
        (b"mif1", b"mif1", "AVIF"),
        (b"mp42", b"isom", None),
    ],
)
def test_brands_tell_avif_from_heif(major, others, kind):
    data = struct.pack(">I", 16 + len(others)) + b"ftyp" + major + b"\0\0\0\0" + others
    assert isobmff.kind_of(data) == kind


def test_a_heic_is_refused_by_the_size_it_declares():
    with pytest.raises(ImageTooLarge, match="the image is 64 x 48 px, at most 3071"):
        decode(heic(), max_pixels=64 * 48 - 1)


def test_a_heic_is_refused_by_its_bytes():
    """Its cost grows with them; what follows the image is counted too."""
    with pytest.raises(ImageTooLarge, match=r"the HEIF has \d+ bytes, at most 12582912"):
        decode(heic() + bytes(isobmff.MAX_HEIF_BYTES))


@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
def test_a_heic_that_is_cut_short_is_refused(part):
    data = heic(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with pytest.raises(InvalidImage):
        decode(data[: int(len(data) * part)])


def test_without_pillow_heif_the_refusal_names_the_extra():
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from smn_core.pixels import decode\n"
        "try:\n    decode(sys.stdin.buffer.read())\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=heic(), capture_output=True, check=True)
    assert done.stdout.startswith(b"InvalidImage HEIC photos need pillow-heif, of the extra heic")
