"""What numba compiles: the pass over the output of a layer that correction.py describes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import numpy as np

LOG = logging.getLogger("smn.engine")


def compiled_correct() -> Callable[..., None] | None:
    """`correct`, compiled once and cached on disk; None, with a logged reason, without numba."""
    try:
        import numba
    except ImportError as error:
        LOG.warning("mixed batches run without the shared base: %s", error)
        return None
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        kernel = numba.njit(SIGNATURE, cache=True, **options)(correct)
    except RuntimeError:  # no folder to keep the compiled code in
        kernel = numba.njit(SIGNATURE, **options)(correct)
    return cast("Callable[..., None]", kernel)


SIGNATURE = "void(f4[:,::1], f4[:,::1], f4[::1], i4[::1], i8[:,::1], f4[:,::1], f4[::1], i8, i8, i8, i8)"


def correct(  # type: ignore[no-untyped-def]
    out, x, theta, off, table, scales, bias, first_weight, first_bias, row_from, row_to
):
    """Rows `row_from` to `row_to` of `out`.

    A part is a row of `table`: from row, to row, from and to in `off` of its OFF
    weights, from and to of its OFF biases; and a row of `scales`: of the product, of the bias."""
    n_in, n_out = x.shape[1], out.shape[1]
    for part in range(table.shape[0]):
        start, stop = max(table[part, 0], row_from), min(table[part, 1], row_to)
        if start >= stop:
            continue
        first, last = table[part, 2], table[part, 3]
        n_off = last - first
        positions = off[first:last].astype(np.int64) - first_weight
        outputs, inputs = positions // n_in, positions % n_in
        # The wider of the two rows is walked in order, which memory answers fastest; the lists come ordered by output.
        order = np.argsort(inputs) if n_in > n_out else np.arange(n_off)
        values = np.empty(n_off, np.float32)
        for k in range(n_off):
            values[k] = theta[off[first + order[k]]]
        # Of indices without a sign numba need not ask whether they count from the end.
        to, at = outputs[order].astype(np.uint64), inputs[order].astype(np.uint64)
        own_bias = bias * scales[part, 1]
        for k in range(table[part, 4], table[part, 5]):
            own_bias[off[k] - first_bias] = 0.0
        scale = scales[part, 0]
        for row in range(start, stop):
            y, z = out[row], x[row]
            for k in range(n_off):
                y[to[k]] -= z[at[k]] * values[k]
            for j in range(n_out):
                y[j] = y[j] * scale + own_bias[j]
