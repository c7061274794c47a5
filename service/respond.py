"""Makes an answer of embeddings: JSON or npy, cut and normalised on request."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from jaxtyping import Float32
from numpy import ndarray

NPY = "application/x-npy"


def shape(z: Float32[ndarray, "n d"], dimensions: int | None, *, normalize: bool) -> Float32[ndarray, "n m"]:
    """The first `dimensions` components, then unit length if asked for; a zero row stays zero."""
    z = z if dimensions is None else z[:, :dimensions]
    if normalize:
        _, exponent = np.frexp(np.abs(z).max(axis=1, keepdims=True))
        z = np.ldexp(z, -exponent)  # exact; else the square of a very long or short vector is no float32
        z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(z, np.float32)


def as_json(body: dict[str, Any]) -> Response:
    """A JSON answer. orjson writes float32 arrays without making Python floats of them."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def as_npy(z: Float32[ndarray, "n d"]) -> Response:
    """A `.npy` file, version 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, z, version=(1, 0), allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY)
