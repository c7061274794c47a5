"""Quantise a matrix to a few bits an entry so that its products with the training data change least.

The columns are rounded one after the other. Rounding a column changes the products; the later columns are moved to undo
the change, as far as the features are correlated. Root and experts are nearly alike, so most of the change is undone.
Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023; here
for one linear map.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from numpy import ndarray

from smn_core.cascade.codes import to_levels

DAMPING = 0.1
"""This part of the mean variance is added to every variance, because correlations of few images are partly chance."""
STEPS = (1.0, 0.8, 0.6)
"""The scales that are tried for every row, as parts of the scale that reaches the row's largest entry."""


def quantise(
    matrix: Float64[ndarray, "q f"], centred: Float64[ndarray, "n f"], n_bits: int
) -> tuple[UInt8[ndarray, "q f"], Float32[ndarray, "q"]]:
    """Codes and scales. `to_levels(codes) * scale` has nearly the products with rows of `centred` that `matrix` has."""
    covariance = centred.T @ centred / len(centred)
    covariance[np.diag_indices_from(covariance)] += DAMPING * np.diag(covariance).mean() + 1e-30
    order = np.argsort(-np.diag(covariance), kind="stable")
    covariance, wanted = covariance[np.ix_(order, order)], matrix[:, order]
    # An error e of column i moves each later column j by `-e * onward[i, j] / onward[i, i]`.
    onward = np.linalg.cholesky(np.linalg.inv(covariance)).T
    largest = np.maximum(np.abs(matrix).max(1), 1e-30) / ((2**n_bits - 1) / 2)
    best = np.full(len(matrix), np.inf)
    codes, scales = np.zeros(matrix.shape, np.uint8), np.zeros(len(matrix), np.float32)
    for step in STEPS:
        tried = (largest * step).astype(np.float32)
        found = _feed_back(wanted, onward, tried, n_bits)
        change = to_levels(found, n_bits) * tried[:, None] - wanted
        error = np.einsum("qf,qf->q", change @ covariance, change)
        better = error < best
        best[better], scales[better] = error[better], tried[better]
        codes[np.ix_(better, order)] = found[better]
    return codes, scales


def _feed_back(
    wanted: Float64[ndarray, "q f"], onward: Float64[ndarray, "f f"], scales: Float32[ndarray, "q"], n_bits: int
) -> UInt8[ndarray, "q f"]:
    """Codes of `wanted`, column by column; after each column the later ones are moved by its error."""
    left, found = wanted.copy(), np.empty(wanted.shape, np.uint8)
    top = 2**n_bits - 1
    for i in range(wanted.shape[1]):
        found[:, i] = np.clip(np.rint(left[:, i] / scales + top / 2), 0, top)
        error = (left[:, i] - (found[:, i] - top / 2) * scales) / onward[i, i]
        left[:, i + 1 :] -= error[:, None] * onward[i, i + 1 :]
    return found
