"""Images as text: base64 or a data URI, as clients of every kind write them."""

from __future__ import annotations

import binascii
import re

from service.errors import Rejected

DATA_URI = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w=.+-]+)*,", re.ASCII | re.IGNORECASE)
STEP_CHARS = 2**20
"""As much is decoded before another thread may run; a multiple of 4."""
WHITE = b" \t\r\n"
HEAD_CHARS = 32
"""Of base64, without line breaks: as many show what kind of file it is."""
SIGNATURE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM|II\*\x00|MM\x00\*|II\+\x00|MM\x00\+|RIFF....WEBP"
    rb"|....ftyp|\x00\x00\x00\x0cjP {2}|\xff\x4f\xff\x51|P[1-7][ \t\r\n]",
    re.DOTALL,
)
"""What image files begin with: PNG, JPEG, GIF, BMP, TIFF, WebP, AVIF and HEIC, JPEG 2000, PPM."""


def decode_text(text: object, param: str) -> bytes:
    """The bytes of base64 text, or of a data URI with base64. A URL is refused: the server fetches nothing.

    Line breaks may stand in it, and the padding at its end may lack.

    Raises:
        Rejected: 400.
    """
    if not isinstance(text, str):
        raise Rejected(400, "invalid_image_text", f"{param} is not base64 text or a data URI", param)
    header = DATA_URI.match(text[:256])
    if header is None and "://" in text[:32]:
        raise Rejected(400, "url_not_fetched", f"{param} is a URL; this server fetches nothing: send the bytes", param)
    if header is not None and not header[0].lower().endswith(";base64,"):
        raise Rejected(400, "invalid_image_text", f"{param} is a data URI without ;base64", param)
    try:
        return _decode((text[header.end() :] if header else text).encode("ascii"))
    except ValueError as error:
        said = "a character of it is none of base64" if isinstance(error, UnicodeEncodeError) else error
        raise Rejected(400, "invalid_image_text", f"{param} is not base64: {said}", param) from error


def decode_unless_text(text: object, param: str) -> bytes:
    """As `decode_text`, of a place where a client may have put a text: only what is a data URI or an image is decoded.

    Raises:
        Rejected: 400, of a text `text_input`.
    """
    bare = isinstance(text, str) and DATA_URI.match(text[:256]) is None and "://" not in text[:32]
    if bare and not begins_as_image(_first_bytes(str(text))):
        raise text_input(param)
    return decode_text(text, param)


def text_input(param: str) -> Rejected:
    """The refusal of a text: there is no text encoder."""
    said = f"{param} is text: this server embeds images, as base64 or data URIs"
    return Rejected(400, "text_input", said, param)


def begins_as_image(data: bytes | bytearray | memoryview) -> bool:
    """Whether these are the first bytes of an image file of a known kind."""
    return SIGNATURE.match(data) is not None


def _first_bytes(text: str) -> bytes:
    bare = "".join(text[: 4 * HEAD_CHARS].split())[:HEAD_CHARS]
    try:
        return binascii.a2b_base64(bare[: len(bare) // 4 * 4].encode("ascii"), strict_mode=True)
    except ValueError:
        return b""


def _decode(text: bytes) -> bytes:
    try:
        return _decode_strictly(text)
    except binascii.Error:
        parts = (text[i : i + STEP_CHARS].translate(None, WHITE) for i in range(0, len(text), STEP_CHARS))
        bare = b"".join(parts)
        return _decode_strictly(bare + b"=" * (-len(bare) % 4))


def _decode_strictly(text: bytes) -> bytes:
    if text.find(b"=", 0, max(0, len(text) - 2)) >= 0:  # a part below could end there
        raise binascii.Error("padding before its end")
    parts = (text[i : i + STEP_CHARS] for i in range(0, len(text), STEP_CHARS))
    return b"".join(binascii.a2b_base64(part, strict_mode=True) for part in parts)
