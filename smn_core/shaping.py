"""What is done to vectors before a server, or the embedder, gives them out: cut, then brought to unit length."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from numpy import ndarray


def shape(z: Float32[ndarray, "n d"], dimensions: int | None, *, normalize: bool) -> Float32[ndarray, "n m"]:
    """The first `dimensions` components, then unit length if asked for; a zero row stays zero."""
    z = z if dimensions is None else z[:, :dimensions]
    if normalize:
        _, exponent = np.frexp(np.abs(z).max(axis=1, keepdims=True))
        z = np.ldexp(z, -exponent)  # exact; else the square of a very long or short vector is no float32
        z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(z, np.float32)
