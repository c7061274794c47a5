"""What numba compiles to code the bits of one tensor, and to class its weights. Whole numbers only.

A bit is OFF with the odds

    rate * row[i] * column[j] * row_sign[i, s] * column_sign[j, s] * above[a] * size[q]

where weight (i, j) has the sign s and the classes a and q. Each of these is a factor `(seen + strength) / (expected +
strength)`: `seen` counts the OFF bits that it met so far, `expected` sums the chances that they had without it. So a
factor is near 1 until there is evidence, and both sides, who have coded the same bits, have the same factors. They are
kept as logarithms (tables.py); docs/formats.md says when each is renewed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

ONE, MOST, STEPS = 1 << 24, 24 * 64, 64
TOP = 1 << 24
"""A range below it takes in, or gives out, a byte."""
BLOCK_ROWS = 32
RUN = 64
"""Weights of a row after which the row's factors are renewed."""
MAX_SCALE = 14 * STEPS
MAX_SUM, MAX_EXPECTED = (1 << 47) - 1, 1 << 52
N_ABOVE, N_SIZE = 16, 8
SIGN = 0x80
CODE, RANGE, PLACE, CACHE, PENDING = range(5)
OFF = "i8[:,::1]"
SIGNATURES = {
    "code_tensor": f"void(b1, u1[::1], i8, i8, u1[::1], i8[::1], {', '.join([OFF] * 7)}, i8[::1], i8[::1], i8[::1], "
    "i4[::1], i8[::1], u1[::1])",
    "code_kept": "void(b1, u1[::1], i8[::1], i8[::1], i8[::1], u1[::1])",
    "code_evenly": "void(b1, u1[::1], i8, i8[::1], u1[::1])",
    "finish": "void(i8[::1], u1[::1])",
    "class_weights": "void(u4[::1], i8, i8, u1[::1])",
}


@cache
def compile_loop(name: str) -> Callable[..., None]:
    """Compile one of SIGNATURES, once: the result is cached on disk, where that can be."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    function = {f.__name__: f for f in (code_tensor, code_kept, code_evenly, finish, class_weights)}[name]
    try:
        loop = numba.njit(SIGNATURES[name], cache=True, **options)(function)
    except RuntimeError:  # no folder to keep the compiled code in
        loop = numba.njit(SIGNATURES[name], **options)(function)
    return cast("Callable[..., None]", loop)


def compile_all() -> None:
    """Compile all of SIGNATURES, or read them from the cache: the first mask then waits for neither."""
    for name in SIGNATURES:
        compile_loop(name)


@intrinsic
def _bit_length_less_one(_context, _value):
    def generate(_context, builder, _signature, args):
        zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))
        return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)

    return types.int64(types.int64), generate


@register_jitable
def _log(value, logarithms):
    """The logarithm of a whole number above 0, by its nine highest bits."""
    octave = _bit_length_less_one(value)
    highest = value >> (octave - 8) if octave >= 8 else value << (8 - octave)
    return STEPS * octave + logarithms[highest & 255]


@register_jitable
def _factor(evidence, k, strength, logarithms):
    return _log(evidence[0, k] + strength, logarithms) - _log(evidence[1, k] + strength, logarithms)


@register_jitable
def _expect(evidence, k, total, scale, powers):
    """Add a sum of chances, with the factor that was in them taken out, to what is expected of it."""
    scale = -min(max(scale, -MAX_SCALE), MAX_SCALE)
    octave = scale >> 6
    power = powers[scale & 63]
    power = power << octave if octave >= 0 else power >> -octave
    total = min(total, MAX_SUM)
    added = (total * power) >> 16 if total < 1 << 31 else (total >> 16) * power
    evidence[1, k] = min(evidence[1, k] + added, MAX_EXPECTED)


@register_jitable
def _renew_column(j, sums, column, column_sign, logs, logs_sign, both, strengths, powers, logarithms):
    _expect(column, j, sums[2 * j] + sums[2 * j + 1], logs[j], powers)
    logs[j] = _factor(column, j, strengths[0], logarithms)
    for k in range(2 * j, 2 * j + 2):
        _expect(column_sign, k, sums[k], logs_sign[k], powers)
        sums[k] = 0
        logs_sign[k] = _factor(column_sign, k, strengths[1], logarithms)
        both[k] = logs[j] + logs_sign[k]


@register_jitable
def _next_byte(coder, stream):
    """The next byte of a stream; behind its end 0, and `finish` sees that it was passed."""
    place = coder[PLACE]
    coder[PLACE] = place + 1
    return stream[place] if place < stream.shape[0] else 0


@register_jitable
def _give_byte(coder, stream):
    """Write the highest byte of the lower bound, once no carry can change it."""
    low = coder[CODE]
    if low < 0xFF000000 or low >= 1 << 32:
        byte = coder[CACHE] + (low >> 32)
        while coder[PENDING] > 0:
            if 0 <= coder[PLACE] < stream.shape[0]:
                stream[coder[PLACE]] = byte & 0xFF
            coder[PLACE] += 1
            byte = 0xFF + (low >> 32)
            coder[PENDING] -= 1
        coder[CACHE] = (low >> 24) & 0xFF
    coder[PENDING] += 1
    coder[CODE] = (low & 0x00FFFFFF) << 8


@register_jitable
def _shift(decodes, coder, stream):
    """Let bytes in, or out, until the range is wide enough for a chance of 2^-24."""
    while coder[RANGE] < TOP:
        coder[RANGE] <<= 8
        if decodes:
            coder[CODE] = (coder[CODE] << 8) | _next_byte(coder, stream)
        else:
            _give_byte(coder, stream)


def code_tensor(
    decodes, off, n_rows, n_columns, classes, known, rate, row, column, row_sign, column_sign, above, size, strengths,
    powers, logarithms, chances, coder, stream,
):  # fmt: skip
    """Code one tensor as a matrix: encode `off`, or decode into it.

    Args:
        decodes: decode, else encode.
        off: [n_rows * n_columns], 1 where a weight is OFF.
        classes: of every weight, as `class_weights` makes them.
        known: places, in order, that are left out: neither coded nor counted. A last place behind all ends them.
        rate, row, column, row_sign, column_sign, above, size: [2, n] evidence of each factor, what was seen and what
            was expected; changed.
        strengths: of row and column, of their signs, and of the classes; the rate's is 0.
        coder, stream: the state of the arithmetic coder, and the bytes that it reads or writes.
    """
    logs, logs_sign = np.zeros(n_columns, np.int64), np.zeros(2 * n_columns, np.int64)
    both, sums = np.zeros(2 * n_columns, np.int32), np.zeros(2 * n_columns, np.int64)
    logs_above, logs_size = np.zeros(N_ABOVE, np.int64), np.zeros(N_SIZE, np.int64)
    logs_class, sums_class = np.zeros(2 * SIGN, np.int32), np.zeros(2 * SIGN, np.int64)
    here, in_run = np.zeros(3, np.int64), np.zeros(2, np.int64)
    log_rate, sum_rate, n_known, left_out = 0, 0, 1, known[0]
    for i in range(n_rows):
        if i % BLOCK_ROWS == 0:
            for j in range(n_columns):
                _renew_column(j, sums, column, column_sign, logs, logs_sign, both, strengths, powers, logarithms)
            _settle_classes(sums_class, above, size, logs_above, logs_size, powers)
            _expect(rate, 0, sum_rate, log_rate, powers)
            sum_rate = 0
            log_rate = _factor(rate, 0, 0, logarithms)
            _renew_classes(log_rate, above, size, strengths[2], logs_above, logs_size, logs_class, logarithms)
        for first in range(0, n_columns, RUN):
            _renew_row(i, row, row_sign, here, strengths, logarithms)
            base, gap = here[0] + here[1], here[2] - here[1]
            begin, stop = i * n_columns + first, i * n_columns + min(first + RUN, n_columns)
            code, width, sum_all, sum_minus = coder[CODE], coder[RANGE], 0, 0
            for t in range(begin, stop):
                if t == left_out:
                    left_out = known[n_known]
                    n_known += 1
                    continue
                kind = np.int64(classes[t])
                negative = kind >> 7
                k = 2 * (t - i * n_columns) + negative
                odds = logs_class[kind] + both[k] + base + gap * negative
                odds = -MOST if odds < -MOST else (MOST if odds > MOST else odds)
                chance = np.int64(chances[odds + MOST])
                sum_all += chance
                sum_minus += chance * negative
                sums[k] += chance
                sums_class[kind] += chance
                bound = (width * chance) >> 24
                is_off = code < bound if decodes else off[t] != 0
                if is_off:
                    width = bound
                else:
                    width -= bound
                    code += -bound if decodes else bound
                if width < TOP:
                    coder[CODE], coder[RANGE] = code, width
                    _shift(decodes, coder, stream)
                    code, width = coder[CODE], coder[RANGE]
                if is_off:
                    off[t] = 1
                    in_run[0], in_run[1] = sum_all - sum_minus, sum_minus
                    _settle_row(i, in_run, row, row_sign, here, powers)
                    sum_rate += sum_all
                    sum_all, sum_minus = 0, 0
                    rate[0, 0] += ONE
                    row[0, i] += ONE
                    row_sign[0, 2 * i + negative] += ONE
                    column[0, k >> 1] += ONE
                    column_sign[0, k] += ONE
                    above[0, kind & 15] += ONE
                    size[0, (kind >> 4) & 7] += ONE
                    _renew_row(i, row, row_sign, here, strengths, logarithms)
                    base, gap = here[0] + here[1], here[2] - here[1]
                    _renew_column(
                        k >> 1, sums, column, column_sign, logs, logs_sign, both, strengths, powers, logarithms
                    )
            coder[CODE], coder[RANGE] = code, width
            in_run[0], in_run[1] = sum_all - sum_minus, sum_minus
            _settle_row(i, in_run, row, row_sign, here, powers)
            sum_rate += sum_all
    for j in range(n_columns):
        _renew_column(j, sums, column, column_sign, logs, logs_sign, both, strengths, powers, logarithms)
    _settle_classes(sums_class, above, size, logs_above, logs_size, powers)


@register_jitable
def _renew_row(i, row, row_sign, here, strengths, logarithms):
    """The logarithms of a row's factors: for all its weights, for those above 0, for those below."""
    here[0] = _factor(row, i, strengths[0], logarithms)
    here[1] = _factor(row_sign, 2 * i, strengths[1], logarithms)
    here[2] = _factor(row_sign, 2 * i + 1, strengths[1], logarithms)


@register_jitable
def _settle_row(i, in_run, row, row_sign, here, powers):
    """Add the chances of weights of a row, above 0 and below, to what is expected of it."""
    _expect(row, i, in_run[0] + in_run[1], here[0], powers)
    _expect(row_sign, 2 * i, in_run[0], here[1], powers)
    _expect(row_sign, 2 * i + 1, in_run[1], here[2], powers)


@register_jitable
def _renew_classes(log_rate, above, size, strength, logs_above, logs_size, logs_class, logarithms):
    for a in range(N_ABOVE):
        logs_above[a] = _factor(above, a, strength, logarithms)
    for q in range(N_SIZE):
        logs_size[q] = _factor(size, q, strength, logarithms)
    for kind in range(SIGN):
        logs_class[kind] = log_rate + logs_above[kind & 15] + logs_size[kind >> 4]
        logs_class[kind + SIGN] = logs_class[kind]


@register_jitable
def _settle_classes(sums_class, above, size, logs_above, logs_size, powers):
    """Add the chances of every class of weights to what is expected of it."""
    for a in range(N_ABOVE):
        total = 0
        for q in range(N_SIZE):
            total += sums_class[16 * q + a] + sums_class[SIGN + 16 * q + a]
        _expect(above, a, total, logs_above[a], powers)
    for q in range(N_SIZE):
        total = 0
        for a in range(N_ABOVE):
            total += sums_class[16 * q + a] + sums_class[SIGN + 16 * q + a]
            sums_class[16 * q + a] = 0
            sums_class[SIGN + 16 * q + a] = 0
        _expect(size, q, total, logs_size[q], powers)


def code_kept(decodes, off, places, counts, coder, stream):
    """Code the bits at some places, with chances that those before tell: `counts` are those OFF, and all; changed."""
    for t in places:
        chance = min(max((ONE * (2 * counts[0] + 1)) // (2 * counts[1] + 2), 1), ONE - 1)
        bound = (coder[RANGE] * chance) >> 24
        if decodes:
            off[t] = coder[CODE] < bound
        if off[t]:
            coder[RANGE] = bound
            counts[0] += 1
        else:
            coder[RANGE] -= bound
            coder[CODE] += -bound if decodes else bound
        counts[1] += 1
        if coder[RANGE] < TOP:
            _shift(decodes, coder, stream)


def code_evenly(decodes, off, n_weights, coder, stream):
    """Code bits of which each is OFF with a chance of one half."""
    for t in range(n_weights):
        bound = coder[RANGE] >> 1
        if decodes:
            off[t] = coder[CODE] < bound
        if off[t]:
            coder[RANGE] = bound
        else:
            coder[RANGE] -= bound
            coder[CODE] += -bound if decodes else bound
        if coder[RANGE] < TOP:
            _shift(decodes, coder, stream)


def finish(coder, stream):
    """Write the rest of the lower bound: 5 bytes of it, of which the decoder's last 4 then leave nothing over."""
    for _ in range(5):
        _give_byte(coder, stream)


def class_weights(weights, n_rows, n_columns, classes):
    """The class of every weight of a matrix, from the bits of its float32: see `classes.py`."""
    rows, columns, total = np.zeros(n_rows, np.int64), np.zeros(n_columns, np.int64), np.int64(0)
    for i in range(n_rows):
        in_row = np.int64(0)
        for j in range(n_columns):
            size = np.int64((weights[i * n_columns + j] & 0x7FFFFFFF) >> 15)
            in_row += size
            columns[j] += size
        rows[i] = in_row // n_columns
        total += in_row
    mean = total // (n_rows * n_columns)
    for j in range(n_columns):
        columns[j] = columns[j] // n_rows - mean
    for i in range(n_rows):
        for j in range(n_columns):
            bits = weights[i * n_columns + j]
            size = np.int64((bits & 0x7FFFFFFF) >> 15)
            above = min(max((size - rows[i] - columns[j] + 64) >> 6, 0), N_ABOVE - 1)
            larger = min(max((size - mean) >> 7, 0), N_SIZE - 1)
            classes[i * n_columns + j] = (bits >> 31) << 7 | larger << 4 | above
