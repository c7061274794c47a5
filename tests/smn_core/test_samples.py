"""Every format, depth and transparency has the pixels that its standard gives it, or is refused with the reason.

The files are written by hand; what is expected is computed from the samples, never by Pillow.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from smn_core.errors import InvalidImage
from smn_core.images import decode
from tests.smn_core import handmade
from tests.smn_core.handmade import ASCII, LONG, SHORT, over_white, to_eight

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB, TIFF_PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
EXTRA, FORMAT, PLANAR = 338, 339, 284


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def samples(bits: int, channels: int, seed: int = 0) -> np.ndarray:
    """`[5, 7, channels]` random samples, both ends of the range among them."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (5, 7, channels))
    values[0, 0], values[0, 1] = 0, (1 << bits) - 1
    return values


def near(seen: np.ndarray, expected: np.ndarray, by: int = 1) -> bool:
    assert seen.shape == expected.shape
    return bool(np.abs(seen - expected).max() <= by)


def grey(values: np.ndarray) -> np.ndarray:
    return values[..., :1].repeat(3, axis=2)


# -- PNG: every colour type and depth, with and without transparency ---------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("keyed", [False, True])
def test_png_grey(bits, keyed):
    values = samples(bits, 1)
    key = int(values[2, 3, 0])
    extra = [(b"tRNS", struct.pack(">H", key))] if keyed else []
    expected = grey(to_eight(values, (1 << bits) - 1))
    expected = np.where(keyed & (values == key), 255, expected)
    assert np.array_equal(pixels(handmade.png(values, bits, GREY, *extra)), expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("keyed", [False, True])
def test_png_rgb(bits, keyed):
    values = samples(bits, 3)
    key = values[2, 3]
    extra = [(b"tRNS", struct.pack(">3H", *key))] if keyed else []
    expected = to_eight(values, (1 << bits) - 1)
    expected = np.where(keyed & (values == key).all(axis=2, keepdims=True), 255, expected)
    assert near(pixels(handmade.png(values, bits, RGB, *extra)), expected)


@pytest.mark.parametrize(("bits", "colour"), [(16, GREY), (16, RGB)])
def test_of_sixteen_bits_all_decide_what_is_transparent(bits, colour):
    """A neighbour that has the same high byte as the transparent sample keeps its colour."""
    channels = 1 if colour == GREY else 3
    values = np.array([[[0x1234] * channels, [0x1235] * channels, [0x1334] * channels]])
    data = handmade.png(values, bits, colour, (b"tRNS", struct.pack(f">{channels}H", *[0x1234] * channels)))
    assert near(pixels(data)[0, :, 0], np.array([255, 0x12, 0x13]))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_sample_above_the_depth_counts_by_its_lowest_bits(bits):
    values = samples(bits, 1)
    key = int(values[1, 1, 0])
    data = handmade.png(values, bits, GREY, (b"tRNS", struct.pack(">H", key | 0xFF00)))
    assert (pixels(data)[(values == key)[..., 0]] == 255).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", [None, [0], [255, 0], [7, 200]])
def test_png_palette(bits, alphas):
    indices = samples(bits, 1)
    palette = np.random.default_rng(3).integers(0, 256, (1 << bits, 3))
    extra = [(b"PLTE", palette.astype(np.uint8).tobytes())]
    extra += [(b"tRNS", bytes(alphas))] if alphas is not None else []
    alpha = np.full(1 << bits, 255)
    alpha[: len(alphas or [])] = alphas or []
    expected = over_white(palette / 255, alpha[:, None] / 255)[indices[..., 0]]
    assert near(pixels(handmade.png(indices, bits, PALETTE, *extra)), expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [GREY_ALPHA, RGBA])
def test_png_alpha(bits, colour):
    values = samples(bits, 2 if colour == GREY_ALPHA else 4)
    part = values / ((1 << bits) - 1)
    shown = grey(part) if colour == GREY_ALPHA else part[..., :3]
    assert near(pixels(handmade.png(values, bits, colour)), over_white(shown, part[..., -1:]))


def test_of_an_animated_png_the_image_of_the_file_is_taken():
    first, second = (np.full((4, 4, 3), value) for value in (40, 90))
    frame = struct.pack(">IIIIIHHBB", 0, 4, 4, 0, 0, 1, 10, 0, 0)
    later = handmade.chunk(b"fcTL", struct.pack(">I", 1) + frame[4:]) + handmade.chunk(
        b"fdAT", struct.pack(">I", 2) + zlib.compress((b"\0" + second[0].astype(np.uint8).tobytes()) * 4)
    )
    data = handmade.png(first, 8, RGB, (b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", frame), after=later)
    assert (pixels(data) == 40).all()


# -- TIFF --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8], ids=["raw", "deflate"])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_tiff_grey(bits, photometric, compression, order):
    values = samples(bits, 1)
    expected = to_eight(values, (1 << bits) - 1)
    expected = 255 - expected if photometric == WHITE_IS_ZERO else expected
    data = handmade.tiff(values, bits, photometric, order=order, compression=compression)
    if bits == 12 and order == ">":
        with pytest.raises(InvalidImage):
            decode(data)
    else:
        assert near(pixels(data), grey(expected))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8], ids=["raw", "deflate"])
@pytest.mark.parametrize("extra", [None, 0, 1, 2], ids=["none", "unspecified", "premultiplied", "alpha"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_colour_and_alpha(bits, channels, extra, compression, order):
    values = samples(bits, channels + (extra is not None))
    if extra == 1:
        values[..., :-1] = values[..., :-1] * values[..., -1:] // ((1 << bits) - 1)
    part = values / ((1 << bits) - 1)
    colour, alpha = part[..., :channels], part[..., -1:] if extra in (1, 2) else np.ones((5, 7, 1))
    expected = 255 * (colour + 1 - alpha) if extra == 1 else over_white(colour, alpha)
    tags = {EXTRA: (SHORT, [extra])} if extra is not None else {}
    data = handmade.tiff(
        values, bits, TIFF_RGB if channels == 3 else BLACK_IS_ZERO, order=order, compression=compression, tags=tags
    )
    if bits == 16 and channels == 1 and extra is not None:
        with pytest.raises(InvalidImage):
            decode(data)
    else:
        expected = np.rint(expected).astype(int)
        assert near(pixels(data), expected if channels == 3 else grey(expected), 2 if extra == 1 else 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_palette(bits):
    indices = samples(bits, 1)
    palette = np.random.default_rng(3).integers(0, 65536, (3, 1 << bits))
    data = handmade.tiff(indices, bits, TIFF_PALETTE, tags={320: (SHORT, palette.reshape(-1).tolist())})
    assert near(pixels(data), to_eight(palette.T, 65535)[indices[..., 0]])


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_cmyk(bits):
    values = samples(bits, 4)
    c, m, y, k = np.moveaxis(values / ((1 << bits) - 1), -1, 0)
    expected = np.rint(255 * np.stack([(1 - ink) * (1 - k) for ink in (c, m, y)], -1)).astype(int)
    assert near(pixels(handmade.tiff(values, bits, CMYK)), expected, 2)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [1, 8], ids=["raw", "deflate"])
def test_tiff_in_separate_planes(bits, compression):
    values = samples(bits, 3)
    planes = [b"".join(handmade.pack(values[..., c], bits, "<")) for c in range(3)]
    planes = [zlib.compress(plane) if compression == 8 else plane for plane in planes]
    offsets = [8 + sum(map(len, planes[:c])) for c in range(3)]
    tags = {PLANAR: (SHORT, [2]), 273: (LONG, offsets), 279: (LONG, [len(plane) for plane in planes])}
    data = handmade.tiff(values, bits, TIFF_RGB, rows=planes, tags={**tags, 259: (SHORT, [compression])})
    if bits == 16:
        with pytest.raises(InvalidImage, match="separate planes"):
            decode(data)
    else:
        assert np.array_equal(pixels(data), values)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation(orientation):
    values = samples(8, 3)
    turned = values.swapaxes(0, 1) if orientation >= 5 else values
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    assert np.array_equal(pixels(handmade.tiff(values, 8, TIFF_RGB, tags={274: (SHORT, [orientation])})), turned)


@pytest.mark.parametrize(
    ("bits", "photometric", "tags", "reason"),
    [
        (8, BLACK_IS_ZERO, {FORMAT: (SHORT, [2])}, "signed integer samples have no stated range"),
        (16, BLACK_IS_ZERO, {FORMAT: (SHORT, [2])}, "signed integer samples have no stated range"),
        (16, BLACK_IS_ZERO, {FORMAT: (SHORT, [3])}, "floating-point images have no stated range"),
        (16, BLACK_IS_ZERO, {258: (SHORT, [32])}, "32-bit integer images have no stated range"),
        (8, 8, {}, "LAB images are not taken"),
        (8, BLACK_IS_ZERO, {262: (ASCII, b"x\0")}, "does not say what its samples mean"),
    ],
)
def test_tiff_samples_without_a_stated_range_are_refused(bits, photometric, tags, reason):
    with pytest.raises(InvalidImage, match=reason):
        decode(handmade.tiff(samples(bits, 3 if photometric == 8 else 1), bits, photometric, tags=tags))


def test_tiff_ycbcr_without_compression_is_refused_where_colour_is_halved():
    with pytest.raises(InvalidImage, match="uncompressed YCbCr"):
        decode(handmade.tiff(samples(8, 3), 8, YCBCR))


def test_tiff_of_unequal_depths_is_refused():
    with pytest.raises(InvalidImage, match="5, 6, 5 bits are not taken"):
        decode(handmade.tiff(samples(8, 3), 8, TIFF_RGB, tags={258: (SHORT, [5, 6, 5])}))


# -- PPM, BMP, GIF -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [5, 6])
@pytest.mark.parametrize("maxval", [1, 15, 100, 254, 255, 256, 1023, 4095, 65534, 65535])
def test_ppm_of_any_maximum(kind, maxval):
    values = np.random.default_rng(0).integers(0, maxval + 1, (5, 7, 3 if kind == 6 else 1))
    values[0, 0] = maxval
    data = f"P{kind}\n# a comment\n7 5\n{maxval}\n".encode() + values.astype("u1" if maxval < 256 else ">u2").tobytes()
    expected = to_eight(values, maxval)
    assert near(pixels(data), expected if kind == 6 else grey(expected))


def test_ppm_as_text():
    assert pixels(b"P3 2 1 15\n0 15 0  15 0 15").tolist() == [[[0, 255, 0], [255, 0, 255]]]
    assert pixels(b"P1 2 1\n0 1")[0, :, 0].tolist() == [255, 0]
    assert pixels(b"P4 2 1\n\x40")[0, :, 0].tolist() == [255, 0]


def test_a_ppm_without_all_its_samples_is_refused():
    with pytest.raises(InvalidImage, match="truncated"):
        decode(b"P6 2 2 254\n" + bytes(11))


def test_bmp_alpha_counts_where_the_header_names_it():
    values = samples(8, 4)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    shown = values[..., 2::-1] / 255
    assert near(pixels(handmade.bmp(values, masks)), over_white(shown, values[..., 3:] / 255))
    assert np.array_equal(pixels(handmade.bmp(values, None)), values[..., 2::-1])


def gif(transparent: int | None, screen: tuple[int, int] = (2, 1)) -> bytes:
    """Two pixels, red and green; hand-coded LZW: clear, 0, 1, end."""
    control = b"" if transparent is None else b"!\xf9\x04\x01\0\0" + bytes([transparent, 0])
    palette = bytes([220, 20, 20, 20, 180, 20])
    return (b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + palette + b"!\xfe\x05hello\0" + control) + (
        b"," + struct.pack("<4HB", 0, 0, 2, 1, 0) + b"\x02\x02\x44\x0a\0;"
    )


@pytest.mark.parametrize("transparent", [None, 0, 1])
def test_gif_transparency(transparent):
    expected = [[220, 20, 20], [20, 180, 20]]
    if transparent is not None:
        expected[transparent] = [255] * 3
    assert pixels(gif(transparent)).tolist() == [expected]


# -- formats that only a library can write: the samples are Pillow's, what is expected of them is not ------------------


def encoded(values: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values.astype(np.uint8))
    (image if mode is None else Image.frombytes(mode, image.size, values.astype(np.uint8).tobytes())).save(
        file, kind, **options
    )
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000"])
def test_alpha_of_other_formats(kind):
    values = np.zeros((16, 48, 4), int)
    values[:, :16], values[:, 16:32], values[:, 32:] = (200, 40, 40, 255), (200, 40, 40, 128), (200, 40, 40, 0)
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 95, "subsampling": "4:4:4"}}.get(kind, {})
    expected = over_white(values[..., :3] / 255, values[..., 3:] / 255)
    assert near(pixels(encoded(values, kind, **options))[8, 8::16], expected[8, 8::16], 6)


def cmyk_jpeg() -> tuple[bytes, np.ndarray]:
    values = np.zeros((16, 32, 4), int)
    values[:, :16], values[:, 16:] = (255, 0, 0, 0), (0, 0, 0, 128)
    return encoded(values, "JPEG", "CMYK", quality=95), np.array([[0, 255, 255], [127, 127, 127]])


def test_a_cmyk_jpeg_of_adobes_kind_is_read_inverted():
    data, expected = cmyk_jpeg()
    assert near(pixels(data)[8, 8::16], expected, 4)


def test_a_cmyk_jpeg_that_does_not_say_its_kind_is_refused():
    data, _ = cmyk_jpeg()
    at = data.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", data, at + 2)
    with pytest.raises(InvalidImage, match="without an Adobe marker"):
        decode(data[:at] + data[at + 2 + length :])


def test_a_ycck_jpeg_is_read_as_its_marker_says():
    """The same coefficients under Adobe's transform 2."""
    values = np.full((16, 16, 4), 127)
    data = bytearray(encoded(values, "JPEG", "CMYK", quality=95))
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    data[at + 11] = 2
    # Stored inverted: 128 in every plane, which as YCC is R = G = B = 128, and CMYK = 255 - RGB = 127, inverted 128.
    shown = pixels(bytes(data))[8, 8]
    assert near(shown, np.array([round(128 * 128 / 255)] * 3), 3)


@pytest.mark.parametrize("bits", [1, 4, 7])
def test_a_jpeg2000_of_few_bits_is_refused(bits):
    data = bytearray(encoded(np.zeros((16, 16, 3), int), "JPEG2000", no_jp2=True))
    size = data.index(b"\xff\x51")
    for component in range(3):
        data[size + 40 + 3 * component] = bits - 1
    with pytest.raises(InvalidImage, match=f"JPEG 2000 of {bits} bits is not taken"):
        decode(bytes(data))
