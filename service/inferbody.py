"""Bodies of the Open Inference Protocol: a JSON header, and tensors in it or, with Triton's extension, behind it.

A tensor of floats in JSON is a number for each value of each pixel. So it is cut out of the text before that is
parsed, and read in steps that let other threads run in between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float32
from numpy import ndarray
from pydantic import BaseModel, ConfigDict, Field

from service.bodies import Floats, Images
from service.errors import Rejected
from service.imagetext import begins_as_image, decode_unless_text
from service.jsonbody import parse_json, validated

NAME = "image"
DATA = re.compile(rb'"data"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}\[')
DATA_SOUGHT = 8
"""As many places are looked at where the floats of a tensor could begin."""
NUMBERS = b"0123456789+-.eE, \t\r\n"
STEP_BYTES = 2**18
"""As many bytes of numbers are read before another thread may run."""
LENGTH_BYTES = 4
MAX_HEADER_BYTES = 2**20
"""Most bytes of a JSON header with tensors behind it."""
MAX_SIDE = 2**31


class InferInput(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(max_length=8)
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class InferOutput(BaseModel):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """One input `image`: BYTES [n] of base64, or FP32 [n,3,H,W], normalised already."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["iVBORw0KGgo..."]}]}]
        }
    )

    id: str | None = None
    inputs: list[InferInput] = Field(max_length=64)
    outputs: list[InferOutput] | None = Field(None, max_length=64)
    parameters: dict[str, Any] = {}


def parse_infer(body: bytearray, header_bytes: int | None, max_images: int) -> tuple[InferRequest, Images]:
    """What is asked for, and the images, not decoded or checked yet; in a worker thread, for the body may be long.

    Args:
        body: is taken apart.
        header_bytes: of the JSON; the rest is the tensor. None: all is JSON.

    Raises:
        Rejected: 400 malformed, 413 too many values, 422 a tensor of another name, type or shape.
        RequestValidationError: 400.
    """
    numbers: bytes | None = None
    text, behind = body, bytearray()
    if header_bytes is not None:
        if header_bytes > min(len(body), MAX_HEADER_BYTES):
            said = f"Inference-Header-Content-Length {header_bytes} is beyond the body or {MAX_HEADER_BYTES} bytes"
            raise Rejected(400, "invalid_header_length", said, "Inference-Header-Content-Length")
        text, behind = body[:header_bytes], body
        del behind[:header_bytes]
    else:
        text, numbers = _cut_numbers(body)
    asked = validated(InferRequest, parse_json(text, max_images))
    if len(asked.inputs) != 1 or asked.inputs[0].name != NAME:
        given = ", ".join(one.name[:32] for one in asked.inputs[:8])
        raise Rejected(422, "invalid_tensor", f"the inputs are [{given}], expected one named {NAME!r}", "inputs")
    return asked, _images(asked.inputs[0], numbers, behind if header_bytes is not None else None, max_images)


def _images(tensor: InferInput, numbers: bytes | None, behind: bytearray | None, max_images: int) -> Images:
    shape, size = tuple(tensor.shape), tensor.parameters.get("binary_data_size")
    if "shared_memory_region" in tensor.parameters:
        raise Rejected(400, "no_shared_memory", "this server shares no memory: send the bytes", "inputs[0].parameters")
    if any(not 0 <= side < MAX_SIDE for side in shape):
        raise Rejected(422, "invalid_tensor", "inputs[0].shape has a side that no tensor has", "inputs[0].shape")
    if size is None and behind:
        raise Rejected(400, "invalid_binary_data", "there are bytes behind the header that no input names", "inputs[0]")
    if size is not None and (behind is None or isinstance(size, bool) or size != len(behind)):
        said = f"inputs[0] has binary_data_size {str(size)[:32]}, and {len(behind or b'')} bytes follow the header"
        raise Rejected(400, "invalid_binary_data", said, "inputs[0].parameters.binary_data_size")
    if shape and shape[0] > max_images:  # before anything is made of them
        raise Rejected(413, "too_many_images", f"{shape[0]} images, at most {max_images} a request", "inputs[0].shape")
    if tensor.datatype == "FP32":
        if len(shape) != 4:
            said = f"inputs[0] is FP32 {list(shape)}, expected [n, 3, height, width]"
            raise Rejected(422, "invalid_tensor", said, "inputs[0].shape")
        data = behind if behind is not None and size is not None else _floats(numbers, tensor.data, shape)
        return Images(array=Floats(data, shape), n_rows=shape[0])
    if tensor.datatype != "BYTES":
        said = f"inputs[0] has datatype {tensor.datatype[:32]!r}, expected BYTES or FP32"
        raise Rejected(422, "invalid_tensor", said, "inputs[0].datatype")
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
        said = f"inputs[0] is BYTES {list(shape)}, expected [n]"
        raise Rejected(422, "invalid_tensor", said, "inputs[0].shape")
    texts: Sequence[object] = (
        _elements(behind, shape[0]) if behind is not None and size is not None else tensor.data or []
    )
    if len(texts) != shape[0]:
        said = f"inputs[0] has {len(texts)} elements, its shape says {shape[0]}"
        raise Rejected(422, "invalid_tensor", said, "inputs[0].data")
    return Images([_decode(text, f"inputs[0].data[{i}]") for i, text in enumerate(texts)])


def _decode(element: object, param: str) -> bytes:
    """An element of a tensor of BYTES: base64, or behind the header the bytes of a file too."""
    if isinstance(element, bytes):
        if begins_as_image(element):
            return element
        element = element.decode("ascii", "replace")
    return decode_unless_text(element, param)


def _elements(behind: bytearray, n: int) -> list[bytes]:
    """The elements of a tensor of BYTES: each is its length, of 4 bytes, least significant first, and its bytes."""
    found, at = list[bytes](), 0
    while at < len(behind) and len(found) <= n:
        size = int.from_bytes(behind[at : at + LENGTH_BYTES], "little")
        at += LENGTH_BYTES + size
        if at > len(behind):
            raise Rejected(
                422, "invalid_tensor", f"element {len(found)} of inputs[0] ends behind the body", "inputs[0]"
            )
        found.append(bytes(behind[at - size : at]))
    return found


def _cut_numbers(body: bytearray) -> tuple[bytearray, bytes | None]:
    """The text without the numbers of its first list `data` that is no list of texts; and these numbers.

    A quotation mark inside of a JSON string has a backslash before it, so `"data":` is a key wherever it stands.
    """
    at = 0
    for _ in range(DATA_SOUGHT):
        at = body.find(b'"data"', at)
        if at < 0:
            break
        begun = DATA.match(body, at) if body[at - 1 : at] != b"\\" else None
        at += 1
        if begun is None:
            continue
        start = begun.end()
        end = body.find(b"]", start)
        if end < 0 or body.find(b'"', start, end) >= 0:
            continue
        numbers = bytes(body[start:end])
        if b"[" in numbers:
            raise Rejected(422, "invalid_tensor", "inputs[0].data is nested: send a flat list", "inputs[0].data")
        return body[:start] + body[end:], numbers
    return body, None


def _floats(numbers: bytes | None, data: list[Any] | None, shape: tuple[int, ...]) -> bytearray:
    """The float32 values of a list of numbers in JSON, as many as the shape says.

    Raises:
        Rejected: 422, others than numbers, or another count.
    """
    if numbers is None or data:
        raise Rejected(422, "invalid_tensor", "inputs[0].data is not a flat list of numbers", "inputs[0].data")
    wanted = int(np.prod([*map(int, shape)], dtype=object))
    count = numbers.count(b",") + 1 if numbers.strip() else 0
    if count != wanted:
        said = f"inputs[0].data has {count} values, its shape {list(shape)} says {wanted}"
        raise Rejected(422, "invalid_tensor", said, "inputs[0].data")
    values, at = bytearray(), 0
    while at < len(numbers):
        end = len(numbers) if at + STEP_BYTES >= len(numbers) else numbers.rfind(b",", at, at + STEP_BYTES)
        if end < at:
            raise Rejected(422, "invalid_tensor", "inputs[0].data has a number that is too long", "inputs[0].data")
        values += _read(numbers[at:end]).tobytes()
        at = end + 1
    return values


def _read(numbers: bytes) -> Float32[ndarray, "n"]:
    try:
        if numbers.translate(None, NUMBERS):
            raise ValueError("there is something else among them")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
            return np.array(orjson.loads(b"[%b]" % numbers), np.float64).astype("<f4")
    except ValueError as error:  # orjson's error is one
        said = f"inputs[0].data is not a list of numbers: {error}"
        raise Rejected(422, "invalid_tensor", said, "inputs[0].data") from error
