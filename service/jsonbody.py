"""JSON bodies: bounded in bytes and items before anything is made of them, and parsed off the event loop.

A parser holds the interpreter until it is done, on whatever thread it runs. What bounds that is the number of values:
long texts are copied in one go, but every value becomes an object, and every wrong one an error.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from service.errors import Rejected
from service.reading import media_type, read_buffer
from smn_core.tensorfile import MAX_DEPTH

MAX_SMALL_BYTES = 64 * 1024
"""Most bytes of a JSON body that holds no image."""
ITEMS, ITEMS_AN_IMAGE = 1024, 16
"""Values of a body, and more for each image that it may have."""
ESCAPES, BYTES_AN_ESCAPE = 4096, 16
"""Escapes by number of a body, and more for its length: some writers escape the + of base64."""
STEP_BYTES = 2**20
"""As much is looked at before another thread may run."""
Model = TypeVar("Model", bound=BaseModel)


async def read_json(
    request: Request,
    model: type[Model],
    limit_bytes: int = MAX_SMALL_BYTES,
    max_images: int = 0,
    *,
    or_no_type: bool = False,
) -> Model:
    """A JSON body as a model. FastAPI's own reading has no limit on its size.

    Args:
        or_no_type: also without a content type, as some clients send it.

    Raises:
        Rejected: 400 not JSON, 413 too large or of too many values, 415 another content type.
        RequestValidationError: 400, not the model's.
    """
    kind = media_type(request)
    if kind != "application/json" and (kind or not or_no_type):
        said = f"content type {kind or 'missing'}: send application/json"
        raise Rejected(415, "unsupported_type", said, "Content-Type")
    body = await read_buffer(request, limit_bytes)
    return await asyncio.to_thread(lambda: validated(model, parse_json(body, max_images)))


def validated(model: type[Model], value: dict[str, Any]) -> Model:
    """A JSON object as a model.

    Raises:
        RequestValidationError: 400, not the model's.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in found]) from error


def parse_json(body: bytes | bytearray, max_images: int = 0) -> dict[str, Any]:
    """A JSON object; in a worker thread, if it may be long.

    Raises:
        Rejected: 400 not one, or deeper than MAX_DEPTH: what reads it writes no such depth; 413 more values than a
            request of so many images can want.
    """
    _require_few(body, ITEMS + ITEMS_AN_IMAGE * max_images)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Rejected(400, "invalid_json", f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Rejected(400, "invalid_json", "the body is not a JSON object")
    if _is_deeper(value, MAX_DEPTH):
        raise Rejected(400, "invalid_json", f"the body has more than {MAX_DEPTH} tables and lists inside each other")
    return value


def _is_deeper(value: object, most: int) -> bool:
    """Whether a value has more than so many tables and lists inside each other."""
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_is_deeper(part, most - 1) for part in parts)


def _require_few(body: bytes | bytearray, most: int) -> None:
    """Every value follows a comma or stands first in a list or a table. Commas of texts count too: they are few."""
    commas = opened = escapes = 0
    for start in range(0, len(body), STEP_BYTES):
        end = start + STEP_BYTES
        commas += body.count(b",", start, end)
        opened += body.count(b"[", start, end) + body.count(b"{", start, end)
        escapes += body.count(b"\\u", start, end)
        if escapes > ESCAPES + len(body) // BYTES_AN_ESCAPE:
            raise Rejected(400, "invalid_json", "the body is nearly all escapes")
        if opened > most:  # one inside the other, or side by side
            raise Rejected(400, "invalid_json", f"the body has more than {most} lists and tables")
        if commas > most:
            raise Rejected(413, "too_many_items", f"the body has more than {most} values")
