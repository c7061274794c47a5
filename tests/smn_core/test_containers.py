"""Metadata never decide whether pixels are read, and what a decode may cost is known before it begins."""

import io
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from smn_core import containers
from smn_core.containers import facts, jpeg, others, png
from smn_core.errors import ImageTooLarge, InvalidImage
from smn_core.images import decode
from tests.smn_core import handmade

MIB = 1 << 20
VALUES = np.random.default_rng(0).integers(0, 256, (4, 6, 3))
TURNED = VALUES.swapaxes(0, 1)[:, ::-1]  # by orientation 6


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data)).astype(int)


def exif(orientation: int | None = 6, make: tuple[int, int, int] = (5, 1, 0)) -> bytes:
    """TIFF bytes with Make as a rational (type 5) that lies outside, and an orientation."""
    entries = [(0x010F, *make)] + ([(0x0112, 3, 1, orientation << 16)] if orientation else [])
    body = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + body + bytes(4)


# -- metadata that is not needed ---------------------------------------------------------------------------------------

LARGE = b"x" * (3 * MIB)
HARMLESS = {
    "icc": (b"iCCP", b"name\0\0" + zlib.compress(LARGE)),
    "icc damaged": (b"iCCP", b"name\0\7garbage"),
    "text": (b"tEXt", b"Comment\0" + LARGE),
    "packed text": (b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
    "xmp": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE)),
    "xmp plain": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LARGE),
    "raw exif": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LARGE)),
    "raw exif damaged": (b"tEXt", b"Raw profile type exif\0\n\nzz"),
    "gamma cut": (b"gAMA", b"\0"),
    "chromaticities cut": (b"cHRM", b"\0"),
    "physical cut": (b"pHYs", b"\0"),
    "animation cut": (b"acTL", b"\0"),
    "frame cut": (b"fcTL", b"\0"),
    "exif garbage": (b"eXIf", b"garbage"),
    "exif large": (b"eXIf", LARGE),
    "private": (b"prVt", b"anything"),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("behind", [False, True])
def test_no_chunk_beside_the_pixels_refuses_a_png(name, behind):
    chunk = HARMLESS[name]
    data = handmade.png(VALUES, 8, 2, after=handmade.chunk(*chunk)) if behind else handmade.png(VALUES, 8, 2, chunk)
    assert np.array_equal(pixels(data), VALUES)


def test_a_png_may_have_more_text_than_pillow_takes_in_all():
    chunk = (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * MIB))
    assert np.array_equal(pixels(handmade.png(VALUES, 8, 2, *[chunk] * 70)), VALUES)


def test_a_png_with_a_wrong_checksum_in_its_metadata_is_read():
    data = bytearray(handmade.png(VALUES, 8, 2, (b"eXIf", exif())))
    data[data.index(b"eXIf") + 10] ^= 1
    assert np.array_equal(pixels(bytes(data)), VALUES)


@pytest.mark.parametrize("behind", [False, True])
def test_a_png_is_turned_by_exif_on_either_side_of_its_pixels_though_a_tag_is_damaged(behind):
    chunk = (b"eXIf", exif())
    data = handmade.png(VALUES, 8, 2, after=handmade.chunk(*chunk)) if behind else handmade.png(VALUES, 8, 2, chunk)
    assert np.array_equal(pixels(data), TURNED)


RAW_EXIF = b"\nexif\n%8d\n%s\n" % (len(exif()) + 6, (b"Exif\0\0" + exif()).hex().encode())
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"Raw profile type exif\0" + RAW_EXIF),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ],
    ids=["text", "packed text", "xmp"],
)
def test_a_png_is_turned_by_what_older_programs_write(chunk):
    assert np.array_equal(pixels(handmade.png(VALUES, 8, 2, chunk)), TURNED)


def test_transparency_behind_the_pixels_changes_nothing():
    key = handmade.chunk(b"tRNS", struct.pack(">3H", *VALUES[0, 0]))
    assert np.array_equal(pixels(handmade.png(VALUES, 8, 2, after=key)), VALUES)


def test_a_png_with_a_chunk_that_must_be_understood_is_refused_by_its_name():
    with pytest.raises(InvalidImage, match="a chunk CgBI that changes its pixels"):
        decode(handmade.png(VALUES, 8, 2, (b"CgBI", b"\0\0\0\0")))


DAMAGED = {
    "make as rational": exif(),
    "make outside": exif(make=(2, 4000, 90000)),
    "count huge": exif(make=(5, 0xFFFFFFFF, 8)),
    "no such type": exif(make=(77, 1, 0)),
    "cut in the second tag": exif()[:26],
    "cut in the head": exif()[:6],
    "empty": b"",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "PNG"])
def test_damaged_exif_refuses_nothing(kind, name):
    image = Image.new("RGB", (48, 32), (10, 20, 30))
    data = encode(image, kind)
    body = DAMAGED[name]
    if kind == "JPEG":
        segment = b"Exif\0\0" + body
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    elif kind == "PNG":
        data = data[:33] + handmade.chunk(b"eXIf", body) + data[33:]
    elif kind == "WEBP":
        frame = data[12:]
        head = b"VP8X" + struct.pack("<IB3x", 10, 8) + struct.pack("<I", 47)[:3] + struct.pack("<I", 31)[:3]
        chunk = b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
        data = b"RIFF" + struct.pack("<I", 4 + len(head) + len(frame) + len(chunk)) + b"WEBP" + head + frame + chunk
    else:
        sound = exif(None, make=(2, 2, 0)).ljust(64, b"\1")
        data = encode(image, kind, exif=sound)
        assert data.count(sound) == 1
        data = data.replace(sound, body.ljust(64, b"\xff"))
    assert decode(data).size in {(48, 32), (32, 48)}
    if kind in ("JPEG", "PNG", "WEBP") and name == "make as rational":
        assert decode(data).size == (32, 48)


def test_a_jpeg_of_many_segments_of_metadata_is_read_in_linear_time():
    data = encode(Image.fromarray(VALUES.astype(np.uint8)), "JPEG")
    segment = b"\xff\xe1\xff\xffExif\0\0" + b"x" * 65527
    many = data[:2] + segment * 300 + b"\xff" * (8 * MIB) + data[2:]
    begin = time.process_time()
    assert np.array_equal(pixels(many), pixels(data))
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("tag", [315, 700, 34665, 34853, 34377, 34675, 282, 65000])
@pytest.mark.parametrize("value", [(handmade.LONG, [4_000_000_000]), (handmade.ASCII, b"x" * 100)])
def test_no_tag_beside_the_pixels_refuses_a_tiff(tag, value):
    data = handmade.tiff(VALUES, 8, 2, tags={tag: value, 274: (handmade.SHORT, [6])})
    assert np.array_equal(pixels(data), TURNED)


def test_comments_before_the_first_frame_of_a_gif_cost_little_and_change_nothing():
    data = encode(Image.fromarray(VALUES.astype(np.uint8)).quantize(8, dither=0), "GIF")
    at = data.index(b",", 13 + 24)
    commented = data[:at] + b"!\xfe" + (b"\xff" + b"x" * 255) * 60_000 + b"\0" + data[at:]
    begin = time.process_time()
    assert np.array_equal(pixels(commented), pixels(data))
    assert time.process_time() - begin < 2
    with pytest.raises(InvalidImage, match=f"more than {others.MAX_BLOCKS} blocks"):
        decode(data[:at] + b"!\xfe" + b"\1x" * (others.MAX_BLOCKS + 1) + b"\0" + data[at:])


# -- bounds ------------------------------------------------------------------------------------------------------------


def webp(kind: bytes, width: int, height: int) -> bytes:
    body = {
        b"VP8X": bytes(4) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3],
        b"VP8L": b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14),
        b"VP8 ": b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height),
    }[kind]
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("kind", [b"VP8X", b"VP8L", b"VP8 "])
def test_a_webp_is_refused_by_the_size_it_declares_before_memory_is_taken(kind):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLarge, match="the image is 16383 x 16383 px"):
        decode(webp(kind, 16383, 16383))
    with pytest.raises(ImageTooLarge, match="16000000 of WEBP"):
        decode(webp(kind, 4001, 4001))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_an_avif_is_refused_by_the_size_it_declares():
    with pytest.raises(ImageTooLarge, match="the image is 24 x 16 px, at most 383"):
        decode(encode(Image.new("RGB", (24, 16)), "AVIF"), max_pixels=383)


@pytest.mark.parametrize("kind", facts.MAX_PIXELS_OF)
def test_each_format_has_a_bound_of_its_own(kind):
    least = facts.MAX_PIXELS_OF[kind]
    containers.check_size(kind, least, 1, facts.MAX_PIXELS)
    containers.check_size(kind, least // 2, 1, facts.MAX_PIXELS, heavy=True)
    with pytest.raises(ImageTooLarge, match=f"{least} of {kind}"):
        containers.check_size(kind, least + 1, 1, facts.MAX_PIXELS)
    with pytest.raises(ImageTooLarge, match=f"{least // 2} of {kind} with 16 bits or alpha"):
        containers.check_size(kind, least // 2 + 1, 1, facts.MAX_PIXELS, heavy=True)


@pytest.mark.parametrize(("bits", "colour"), [(16, 0), (16, 2), (8, 4), (8, 6)])
def test_a_png_of_heavy_pixels_has_half_the_bound(bits, colour):
    data = bytearray(handmade.png(np.zeros((1, 1, 4), int), bits, colour))
    data[16:24] = struct.pack(">II", 6000, 4000)
    with pytest.raises(ImageTooLarge, match="18000000 of PNG with 16 bits or alpha"):
        decode(bytes(data))


def test_a_png_of_too_many_chunks_is_refused():
    empty = handmade.chunk(b"IDAT", b"")
    with pytest.raises(InvalidImage, match=f"more than {png.MAX_CHUNKS} chunks"):
        decode(handmade.png(VALUES, 8, 2, after=empty * png.MAX_CHUNKS))


def scans(n: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encode(Image.new("RGB", (side, side), (90, 90, 90)), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (n - data[first:].count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_has_at_most_a_hundred_scans():
    assert decode(scans(jpeg.MAX_SCANS)).size == (64, 64)
    with pytest.raises(InvalidImage, match="the JPEG has more than 100 scans"):
        decode(scans(jpeg.MAX_SCANS + 1))
    begin = time.process_time()
    with pytest.raises(InvalidImage, match="the JPEG has more than 100 scans"):
        decode(scans(10_000, 1000))
    assert time.process_time() - begin < 1


def test_the_scans_of_a_large_jpeg_are_counted_by_its_pixels():
    data = bytearray(scans(40))
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 6000, 6000)
    with pytest.raises(ImageTooLarge, match="at most 22 are taken of this size"):
        decode(bytes(data))


def test_segments_between_scans_are_counted_too():
    data = scans(10)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(InvalidImage, match=f"more than {jpeg.MAX_SEGMENTS} segments"):
        decode(data[:last] + b"\xff\xfe\0\2" * jpeg.MAX_SEGMENTS + data[last:])


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\0", b"\xff\xd0"])
def test_megabytes_of_anything_behind_a_scan_are_passed_over_in_linear_time(filling):
    data = encode(Image.new("RGB", (16, 16)), "JPEG")
    begin = time.process_time()
    containers.examine(data[:-2] + filling * (8 * MIB // len(filling)) + data[-2:])
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(("width", "height"), [(501, 500), (16_000, 2000)])
def test_what_is_decoded_sample_by_sample_is_small(width, height):
    runs = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)
    for data in (b"P3 %d %d 255\n0 0 0" % (width, height), b"BM" + bytes(12) + runs, b"P1 %d %d\n0" % (width, height)):
        with pytest.raises(ImageTooLarge, match=r"at most 250000 of (PPM as text|BMP by run lengths)"):
            decode(data)


@pytest.mark.parametrize("comment", [b"#" + b"x" * (4 * MIB), b"#\n" * MIB])
def test_a_ppm_header_of_megabytes_is_refused_at_once(comment):
    begin = time.process_time()
    with pytest.raises(InvalidImage):
        decode(b"P6\n" + comment + b"\n1 1 255\nabc")
    assert time.process_time() - begin < 1


def test_a_tile_far_larger_than_its_tiff_is_refused():
    tags = {322: (handmade.LONG, [65_536]), 323: (handmade.LONG, [65_536]), 324: (handmade.LONG, [8])}
    with pytest.raises(ImageTooLarge, match="one tile of the TIFF is 65536 x 65536 px"):
        decode(handmade.tiff(VALUES, 8, 2, compression=8, tags=tags))


def test_a_tiff_of_too_many_strips_is_refused():
    with pytest.raises(InvalidImage, match="more than 65536 values of tag 273"):
        decode(handmade.tiff(VALUES, 8, 2, tags={273: (handmade.LONG, [8] * 65_537)}))


# -- JPEG 2000 ---------------------------------------------------------------------------------------------------------


def codestream(**options) -> bytearray:
    return bytearray(encode(Image.new("RGB", (64, 48), (9, 8, 7)), "JPEG2000", no_jp2=True, **options))


def test_a_jpeg2000_is_bounded_by_its_declared_size():
    data = codestream()
    data[8:16] = struct.pack(">II", 2000, 1001)
    with pytest.raises(ImageTooLarge, match="2000000 of JPEG2000"):
        decode(bytes(data))


def test_the_tiles_of_a_jpeg2000_are_counted():
    data = codestream()
    data[24:32] = struct.pack(">II", 1, 1)
    with pytest.raises(ImageTooLarge, match="has 3072 tiles, at most 1024"):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [(6, 1, "more than 100 layers"), (10, 0, "blocks of less than 16 x 16"), (10, 1, "blocks of less than 16 x 16")],
)
def test_a_jpeg2000_that_is_coded_in_crumbs_is_refused(place, value, reason):
    data = codestream()
    at = data.index(b"\xff\x52")
    data[at + place : at + place + 2] = bytes([value, value])
    with pytest.raises(InvalidImage, match=reason):
        decode(bytes(data))


def test_the_precincts_of_a_jpeg2000_are_counted():
    data = codestream(precinct_size=(128, 128))
    sides = data.index(b"\x22\x33\x44\x55\x66\x77")
    data[sides + 5] = 0x44  # 16 x 16 of the highest resolution
    data[8:16] = struct.pack(">II", 1400, 1400)
    with pytest.raises(InvalidImage, match="precincts, at most 4096"):
        decode(bytes(data))


def test_a_jpeg2000_as_encoders_write_it_is_read():
    for options in ({}, {"precinct_size": (256, 256)}, {"tile_size": (32, 32)}, {"codeblock_size": (32, 32)}):
        assert (pixels(bytes(codestream(**options))) == [9, 8, 7]).all()
    assert (pixels(encode(Image.new("RGB", (64, 48), (9, 8, 7)), "JPEG2000")) == [9, 8, 7]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000"])
def test_a_file_cut_anywhere_is_examined_or_refused(kind):
    data = encode(Image.fromarray(VALUES.astype(np.uint8)), kind)
    for length in range(min(len(data), 700)):
        try:
            seen = containers.examine(data[:length])
        except InvalidImage as error:
            assert str(error)
        else:
            assert seen.kind == kind
