"""What numba compiles: the pass over the output of a linear layer that correction.py describes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import numpy as np

LOG = logging.getLogger("smn.engine")


def compile_correct() -> Callable[..., None] | None:
    """Compile `correct`, once: the result is cached on disk. None, with the reason logged, without numba."""
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
    """Correct rows `row_from` to `row_to` of `out = x @ W.T` for the masks of their spans, in place.

    `table` and `scales` have a row for every span, as `Lists.make_table` says; `off` are positions in theta, where the
    weight begins at `first_weight` and the bias at `first_bias`; `bias` are the root's values.
    """
    n_in, n_out = x.shape[1], out.shape[1]
    for span in range(table.shape[0]):
        start, stop = max(table[span, 0], row_from), min(table[span, 1], row_to)
        if start >= stop:
            continue
        first, last = table[span, 2], table[span, 3]
        n_off = last - first
        positions = off[first:last].astype(np.int64) - first_weight
        outputs, inputs = positions // n_in, positions % n_in
        # The wider one of a row of x and a row of out is walked in order, which memory answers fastest. The list comes
        # ordered by output.
        order = np.argsort(inputs) if n_in > n_out else np.arange(n_off)
        values = np.empty(n_off, np.float32)
        for k in range(n_off):
            values[k] = theta[off[first + order[k]]]
        # Where an index has no sign, numba need not ask whether it counts from the end.
        to, at = outputs[order].astype(np.uint64), inputs[order].astype(np.uint64)
        own_bias = bias * scales[span, 1]
        for k in range(table[span, 4], table[span, 5]):
            own_bias[off[k] - first_bias] = 0.0
        scale = scales[span, 0]
        for row in range(start, stop):
            y, z = out[row], x[row]
            for k in range(n_off):
                y[to[k]] -= z[at[k]] * values[k]
            for j in range(n_out):
                y[j] = y[j] * scale + own_bias[j]
