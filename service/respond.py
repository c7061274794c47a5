"""Makes an answer of embeddings: JSON or npy."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from jaxtyping import Float32
from numpy import ndarray

NPY = "application/x-npy"


def as_json(body: dict[str, Any]) -> Response:
    """A JSON answer. orjson writes float32 arrays without making Python floats of them."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def as_npy(z: Float32[ndarray, "n d"]) -> Response:
    """A `.npy` file, version 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, z, version=(1, 0), allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY)
