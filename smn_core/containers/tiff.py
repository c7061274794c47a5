"""TIFF before its decode: the tags of the first image that its pixels need, and what its samples mean."""

from __future__ import annotations

import struct

from smn_core.containers.facts import Facts, check_size, unknown
from smn_core.errors import ImageTooLarge, InvalidImage

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_VALUES = 65_536
"""Of one tag: more strips or tiles than an image of 36 megapixels needs, but in strips of less than a row."""

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANAR = 256, 257, 258, 259, 262, 274, 277, 284
TILE_WIDTH, TILE_HEIGHT, INK_SET, EXTRA, FORMAT, SUBSAMPLING = 322, 323, 332, 338, 339, 530
# FillOrder, strips, T4 and T6 options, predictor, colour map, tiles, JPEG tables and old JPEG, YCbCr and its reference.
_OTHERS = {266, 273, 278, 279, 292, 293, 317, 320, 324, 325, 347, *range(512, 522), 529, 532}
_READ = {
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR),
    *(TILE_WIDTH, TILE_HEIGHT, INK_SET, EXTRA, FORMAT, SUBSAMPLING),
}
_KEPT = _READ | _OTHERS
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_BYTE_TYPES = {1, 2, 6, 7}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _CMYK, _YCBCR, _LAB = 0, 1, 5, 6, 8
_SIGNED, _FLOAT = 2, 3
_RAW, _SEPARATE = 1, 2
_REMEDY = "convert to 8 or 16 bits"


def examine(data: bytes, max_pixels: int) -> Facts:
    """The facts of the first image of a TIFF or BigTIFF.

    Raises:
        ImageTooLarge: by its header: the image, or one tile.
        InvalidImage: damaged before its pixels, or samples of a kind whose meaning is not stated or not read.
    """
    order = "<" if data[:1] == b"I" else ">"
    try:
        entries, start, wide = _entries(data, order)
        tags = {
            tag: _values(data, order, entry, wide) for tag, entry in entries.items() if tag in {*_READ, ORIENTATION}
        }
        width, height = tags[WIDTH][0], tags[HEIGHT][0]
    except (struct.error, KeyError, IndexError) as error:
        raise unknown(data) from error
    check_size("TIFF", width, height, max_pixels)
    if TILE_WIDTH in tags or TILE_HEIGHT in tags:
        tile_width, tile_height = (_first(tags, tag, 0) for tag in (TILE_WIDTH, TILE_HEIGHT))
        # A tile reaches over the image's edge, but by no more than itself.
        if tile_width * tile_height > max(4 * width * height, 1 << 20):
            raise ImageTooLarge(f"one tile of the TIFF is {tile_width} x {tile_height} px: more than the image")
    bits = _check_samples(tags)
    check_size("TIFF", width, height, max_pixels, heavy=bits > 8 or _first(tags, SAMPLES, 1) > 3)
    inverted = bits > 8 and tags[PHOTOMETRIC][0] == _WHITE_IS_ZERO  # Pillow forgets it, or refuses the file
    return Facts(
        _only_needed(data, order, entries, start, wide, inverted=inverted),
        "TIFF",
        orientation=_first(tags, ORIENTATION, 1),
        bits=bits,
        inverted=inverted,
    )


def _entries(data: bytes, order: str) -> tuple[dict[int, bytes], int, bool]:
    """The first directory's entries by tag, its offset, and whether the file is a BigTIFF."""
    wide = b"+" in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 8 if wide else 4)
    (count,) = struct.unpack_from(order + ("Q" if wide else "H"), data, start)
    size, first = (20, start + 8) if wide else (12, start + 2)
    if count > MAX_VALUES or first + count * size > len(data):
        raise struct.error
    entries: dict[int, bytes] = {}
    for i in range(count):
        entry = data[first + i * size : first + (i + 1) * size]
        tag, kind = struct.unpack_from(order + "HH", entry)
        if tag in _KEPT and kind not in _BYTE_TYPES and _count(entry, order, wide) > MAX_VALUES:
            raise InvalidImage(f"the TIFF has more than {MAX_VALUES} values of tag {tag}")
        if tag in _KEPT or tag == ORIENTATION:
            entries.setdefault(tag, entry)
    return entries, start, wide


def _count(entry: bytes, order: str, wide: bool) -> int:
    count: int = struct.unpack_from(order + ("Q" if wide else "I"), entry, 4)[0]
    return count


def _values(data: bytes, order: str, entry: bytes, wide: bool) -> tuple[int, ...]:
    """The whole numbers of an entry; none, if it holds something else."""
    code, count = _CODES.get(struct.unpack_from(order + "H", entry, 2)[0]), _count(entry, order, wide)
    if code is None or count > MAX_VALUES:
        return ()
    place, room = (12, 8) if wide else (8, 4)
    if count * struct.calcsize(order + code) <= room:
        return struct.unpack_from(f"{order}{count}{code}", entry, place)
    (offset,) = struct.unpack_from(order + ("Q" if wide else "I"), entry, place)
    return struct.unpack_from(f"{order}{count}{code}", data, offset)


def _first(tags: dict[int, tuple[int, ...]], tag: int, otherwise: int) -> int:
    return (tags.get(tag) or (otherwise,))[0]


def _check_samples(tags: dict[int, tuple[int, ...]]) -> int:
    """The bits of a sample, after every kind of sample that Pillow would misread is refused."""
    depths, formats = tags.get(BITS) or (1,), set(tags.get(FORMAT) or (1,))
    bits, photometric = depths[0], _first(tags, PHOTOMETRIC, -1)
    if photometric < 0:
        raise InvalidImage("the TIFF does not say what its samples mean (PhotometricInterpretation)")
    if photometric == _LAB:
        raise InvalidImage("LAB images are not taken: convert to RGB")
    if _FLOAT in formats:
        raise InvalidImage(f"floating-point images have no stated range: {_REMEDY}")
    if bits > 16:
        raise InvalidImage(f"{bits}-bit integer images have no stated range: {_REMEDY}")
    if formats != {1}:
        kind = "signed integer" if _SIGNED in formats else "undefined"
        raise InvalidImage(f"TIFFs of {kind} samples have no stated range: {_REMEDY} without a sign")
    if set(depths) != {bits}:
        raise InvalidImage(f"TIFFs of {', '.join(map(str, depths))} bits are not taken: {_REMEDY}")
    if _first(tags, PLANAR, 1) == _SEPARATE and bits > 8 and _first(tags, SAMPLES, 1) > 1:
        raise InvalidImage("TIFFs of 16 bits with separate planes are not taken: interleave the samples")
    if photometric == _YCBCR and _first(tags, COMPRESSION, _RAW) == _RAW and tags.get(SUBSAMPLING, (2, 2)) != (1, 1):
        raise InvalidImage("uncompressed YCbCr TIFFs of fewer colour than grey samples are not taken: convert to RGB")
    if photometric == _CMYK and _first(tags, INK_SET, 1) != 1:
        raise InvalidImage("TIFFs of inks other than CMYK are not taken: convert to RGB")
    return bits


def _only_needed(
    data: bytes, order: str, entries: dict[int, bytes], start: int, wide: bool, *, inverted: bool
) -> bytes:
    """A copy whose only directory has only the tags that pixels need; `inverted`: and calls 0 black."""
    if inverted:
        one = struct.pack(order + ("HHQH" if wide else "HHIH"), PHOTOMETRIC, 3, 1, _BLACK_IS_ZERO)
        entries = {**entries, PHOTOMETRIC: one.ljust(20 if wide else 12, b"\0")}
    kept = [entry for tag, entry in sorted(entries.items()) if tag in _KEPT]
    count = struct.pack(order + ("Q" if wide else "H"), len(kept))
    directory = count + b"".join(kept) + bytes(8 if wide else 4)
    return b"".join((data[:start], directory, memoryview(data)[start + len(directory) :]))
