"""Image files written byte by byte, without Pillow and without the code under test."""

import struct
import zlib

import numpy as np


def pack(samples: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Rows of samples, `[height, samples in a row]`, highest bit first, each row filled up to whole bytes."""
    if bits == 16:
        return [row.astype(order + "u2").tobytes() for row in samples]
    places = (np.asarray(samples)[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in places]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: np.ndarray, bits: int, colour: int, *extra: tuple[bytes, bytes], after: bytes = b"") -> bytes:
    """A PNG of `[height, width, channels]` samples; `extra` chunks stand before the pixels, `after` bytes behind."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row for row in pack(samples.reshape(height, -1), bits))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = b"".join(chunk(*one) for one in extra) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + body + after + chunk(b"IEND", b"")


SHORT, LONG, ASCII, UNDEFINED = 3, 4, 2, 7


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    compression: int = 1,
    tags: dict[int, tuple[int, list[int] | bytes]] | None = None,
    rows: list[bytes] | None = None,
) -> bytes:
    """A TIFF of `[height, width, channels]` samples in one strip; `tags` adds or replaces tag -> (type, values)."""
    height, width, channels = samples.shape
    strip = b"".join(rows if rows is not None else pack(samples.reshape(height, -1), bits, order))
    strip = zlib.compress(strip) if compression == 8 else strip
    entries: dict[int, tuple[int, list[int] | bytes]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * channels),
        259: (SHORT, [compression]),
        262: (SHORT, [photometric]),
        273: (LONG, [8]),
        277: (SHORT, [channels]),
        278: (LONG, [height]),
        279: (LONG, [len(strip)]),
        **(tags or {}),
    }
    strip += b"\0" * (len(strip) % 2)
    directory, behind = struct.pack(order + "H", len(entries)), b""
    start = 8 + len(strip)
    for tag, (kind, values) in sorted(entries.items()):
        code = {SHORT: "H", LONG: "I", ASCII: "B", UNDEFINED: "B"}[kind]
        body = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(body) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(behind)
            behind += body
            body = struct.pack(order + "I", place)
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + body.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + strip + directory + bytes(4) + behind


def bmp(samples: np.ndarray, masks: tuple[int, ...] | None) -> bytes:
    """A BMP of `[height, width, 4]` bytes, blue first, bottom row last; `masks` of red, green, blue, alpha."""
    height, width, _ = samples.shape
    body = samples.astype(np.uint8).tobytes()
    size, compression = (108, 3) if masks else (40, 0)
    head = struct.pack("<IiiHHIIiiII", size, width, -height, 1, 32, compression, len(body), 0, 0, 0, 0)
    head += struct.pack("<4I4s36x12x", *masks, b"BGRs") if masks else b""
    return b"BM" + struct.pack("<IHHI", 14 + size + len(body), 0, 0, 14 + size) + head + body


def to_eight(samples: np.ndarray, top: int) -> np.ndarray:
    """Samples of 0 to `top` as 0 to 255, by the definition."""
    return np.floor(np.asarray(samples, np.float64) / top * 255 + 0.5).astype(int)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour and alpha of 0 to 1, as 0 to 255 over white."""
    return np.rint(255 * (colour * alpha + 1 - alpha)).astype(int)
