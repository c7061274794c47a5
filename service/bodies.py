"""Request bodies: which images they hold.

`reading.py` bounds their bytes before they are read, `jsonbody.py` and `imagetext.py` read texts. Decoding happens
later, in worker processes.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastapi import Request
from jaxtyping import Float32
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from torch import Tensor

from service.errors import Rejected
from service.imagetext import decode_text
from service.jsonbody import parse_json
from service.reading import begin, media_type, read_body, read_buffer
from service.respond import NPY
from smn_core.images import ImageReader

MAX_FIELDS = 16
IMAGE_FIELDS = ("image", "images")
EPILOGUE_BYTES = 1024
"""Most bytes that may follow the closing boundary of a multipart body."""
MAX_HEADER_BYTES = 4096
"""Most bytes of the header of an .npy array."""
MAX_SIDE = 2**63 - 1
"""Longest side of an .npy array."""
MEDIA_TYPES = "image/*, multipart/form-data, application/json or application/x-npy"


@dataclass(frozen=True)
class Floats:
    """Little-endian float32 values and the shape that they are said to have; `data` begins with them."""

    data: bytearray
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Images:
    """What a request wants embedded: encoded images, or one array that is a model input already."""

    encoded: Sequence[bytes] = ()
    array: bytearray | Floats | None = None
    n_rows: int = 0

    @property
    def count(self) -> int:
        """Images, or rows of the array by its header."""
        return len(self.encoded) if self.array is None else self.n_rows


async def read_images(request: Request, limit_bytes: int, max_images: int) -> Images:
    """The images of a request by its content type; not decoded yet.

    Raises:
        Rejected: 400 malformed, 413 too large or too many, 415 another type, 422 no array.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        found = await _from_multipart(request, limit_bytes, max_images)
    elif kind == "application/json":
        found = await asyncio.to_thread(_from_json, await read_buffer(request, limit_bytes), max_images)
    elif kind.startswith("image/"):
        found = [await read_body(request, limit_bytes)]
    elif kind == NPY:
        array = await read_buffer(request, limit_bytes)
        shape = _npy_header(array)[0]
        n_rows = shape[0] if shape else 0
        require_count(n_rows, max_images)
        return Images(array=array, n_rows=n_rows)
    else:
        raise Rejected(415, "unsupported_type", f"content type {kind or 'missing'}: send {MEDIA_TYPES}")
    require_count(len(found), max_images)
    return Images(found)


def require_count(n_images: int, max_images: int) -> None:
    """Refuse a request without images, or with too many."""
    if n_images == 0:
        raise Rejected(400, "no_images", "the request has no image", "images")
    if n_images > max_images:
        raise Rejected(413, "too_many_images", f"{n_images} images, at most {max_images} a request", "images")


async def _from_multipart(request: Request, limit_bytes: int, max_images: int) -> list[bytes]:
    grow = begin(request, limit_bytes)
    # A body that was cut short lacks its closing boundary; Starlette would drop the cut part and go on without it.
    closing = b"--%b--" % parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
    end = b""
    receive = request._receive

    async def counted() -> Any:
        nonlocal end
        message = await receive()
        part = message.get("body", b"")
        grow(len(part))
        kept = len(closing) + EPILOGUE_BYTES
        end = part[-kept:] if len(part) >= kept else (end + part)[-kept:]
        if message["type"] == "http.request" and not message.get("more_body") and closing not in end:
            raise MultiPartException("it ends before its closing boundary, so it was cut short")
        return message

    request._receive = counted
    try:
        async with request.form(max_files=max_images + 1, max_fields=MAX_FIELDS, max_part_size=limit_bytes) as form:
            _require_fields(form, IMAGE_FIELDS)
            parts = [part for _, part in form.multi_items()]  # rows are in the order of the parts, whatever their names
            return [await p.read() if isinstance(p, UploadFile) else p.encode("latin-1", "replace") for p in parts]
    except HTTPException as error:  # Starlette turns its MultiPartException into this one inside an application
        if "Too many files" in error.detail:
            raise Rejected(413, "too_many_images", f"more than {max_images} images in a request", "image") from error
        if "Too many fields" in error.detail:
            raise Rejected(413, "too_many_parts", f"more than {MAX_FIELDS} parts that are no files") from error
        raise Rejected(400, "invalid_multipart", f"the body is not multipart/form-data: {error.detail}") from error
    except ValueError as error:  # the charset of the content type is one of Python's codecs that decodes no text
        raise Rejected(400, "invalid_multipart", f"the body is not multipart/form-data: {error}") from error
    finally:
        request._receive = receive


def _require_fields(given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse unknown fields. Else a mask that is named in the body instead of the query would be ignored."""
    for field in given:
        if field not in known:
            takes = f"a body takes {' and '.join(known)}, everything else goes into the query, as ?mask=NAME"
            raise Rejected(400, "unknown_field", f"{field[:64]!r} is no field here: {takes}", field[:64])


def _from_json(body: bytearray, max_images: int) -> list[bytes]:
    given = parse_json(body, max_images)
    images = given.get("images")
    if not isinstance(images, list):
        raise Rejected(400, "no_images", 'send {"images": [base64 or data URI, ...]}', "images")
    _require_fields(given, ("images",))
    require_count(len(images), max_images)
    return [decode_text(text, f"images[{i}]") for i, text in enumerate(images)]


def _npy_header(data: bytearray) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, type, and where the values begin.

    Raises:
        Rejected: 422.
    """
    stream = io.BytesIO(data[: 2 * MAX_HEADER_BYTES])
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream, max_header_size=MAX_HEADER_BYTES)
    except Exception as error:  # numpy evaluates the header as a Python literal, which can raise anything
        raise Rejected(422, "invalid_tensor", f"the body is not an .npy array: {error}") from error
    # numpy takes True for a number, and a length below 0; no answer can be made of such an array.
    if not all(type(side) is int and 0 <= side <= MAX_SIDE for side in shape):
        raise Rejected(422, "invalid_tensor", "the array's shape is not made of whole numbers from 0 to 2**63 - 1")
    return shape, fortran, dtype, stream.tell()


def from_array(array: bytearray | Floats, reader: ImageReader) -> Float32[Tensor, "n 3 h w"]:
    """float32 [N,3,H,W], normalised already: the body's own memory. The header is checked before anything else is.

    Args:
        array: an .npy file, or values and their shape.

    Raises:
        Rejected: 422, an array that is no model input.
    """
    if isinstance(array, Floats):
        data, shape, fortran, dtype, offset = array.data, array.shape, False, np.dtype(np.float32), 0
    else:
        data = array
        shape, fortran, dtype, offset = _npy_header(data)
    expected = (3, *reader.input_px)
    if dtype != np.float32 or len(shape) != 4 or tuple(shape[1:]) != expected or fortran:
        raise Rejected(
            422,
            "invalid_tensor",
            f"the array is {dtype} {list(shape)}{' in Fortran order' if fortran else ''}, "
            f"expected float32 [N, {', '.join(map(str, expected))}] in C order",
        )
    if len(data) - offset != 4 * math.prod(shape):
        raise Rejected(422, "invalid_tensor", "the array's bytes do not fit its shape")
    x = np.frombuffer(data, "<f4", offset=offset).reshape(shape)
    if not np.isfinite(x).all():
        raise Rejected(422, "invalid_tensor", "the array has a value that is not finite")
    # After a header of odd length the floats are not aligned in memory; torch needs them to be.
    return torch.from_numpy(x if x.flags.aligned else x.copy())
