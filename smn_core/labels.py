"""What a linear classifier says of embeddings: the head of a mask, or of a mode of a cascade.

p(c | z) = softmax(weight z + bias)[c]
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from smn_core.mask import Head


def probabilities(head: Head, z: Float32[ndarray, "n d"]) -> Float64[ndarray, "n c"]:
    """Rows that sum to 1. `z` are embeddings after the map, neither cut nor brought to unit length."""
    logits = z.astype(np.float64) @ head.weight.astype(np.float64).T + head.bias
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def most_probable(p: Float64[ndarray, "n c"], top: int | None = None) -> Int64[ndarray, "n t"]:
    """The `top` most probable classes of every row, or all of them, in order; of equal ones the first."""
    return np.argsort(-p, axis=1, kind="stable")[:, :top]
