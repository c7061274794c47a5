"""What numba compiles to write theta': one pass over weights and bits, at the speed of memory.

    out[k] = theta[k] * scale  where bit k is ON, +0 where it is OFF

The product is taken in float32 and rounded once to the type of the weights. 32 bits of a mask are a word, made of its
packed bits or of its listed OFF weights, and a word chooses between 32 products and 0. Words of a slot are written
past the caches: it is larger than they are, and a processor that writes to them first reads what is written over.
Words of scratch (scratch.py) stay in them, to be read at once.

The vectors are spelled out as LLVM's, because what LLVM makes of such loops by itself is fifty times slower in some of
their forms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable
from numba.np.arrayobj import make_array

WORD = 32
ALL_ON = np.uint32(2**WORD - 1)
FLOATS, WORDS, HALVES = (ir.VectorType(kind, WORD) for kind in (ir.FloatType(), ir.IntType(32), ir.IntType(16)))
ALIGNED = 8
"""What is written past the caches begins at a multiple of so many weights in memory, as tensors of a layout do."""
KINDS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16}
"""Types of weights that the loop writes, and the types as which it takes them: numpy has no bfloat16."""


@cache
def compile_loop(dtype: torch.dtype, positions: np.dtype[Any]) -> Callable[..., None]:
    """Compile `write` for a type of weights and of positions, once: the result is cached on disk, where that can be."""
    weights = "f4" if dtype == torch.float32 else "u2"
    signature = f"void({weights}[::1], {weights}[::1], i8[:,::1], i8[::1], f4[::1], i{positions.itemsize}[::1], b1)"
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        loop = numba.njit(signature, cache=True, **options)(write)
    except RuntimeError:  # no folder to keep the compiled code in
        loop = numba.njit(signature, **options)(write)
    return cast("Callable[..., None]", loop)


def write(theta, out, chunks, addresses, scales, off, streamed):
    """Write theta' of some chunks of theta, in ascending order, one at least.

    Args:
        theta, out: flat arrays of weights; `out` may be shorter.
        chunks: [n, 5] of every chunk: its tensor, the place of its first weight in theta, how many weights it has, the
            place of its first byte among the packed bytes of its tensor, and the place of its first weight in `out`.
        addresses: where the packed bytes of every tensor lie in memory; 0 where its OFF weights are listed.
        scales: of every tensor.
        off: ascending places in theta of the listed OFF weights of all tensors.
        streamed: write past the caches. Then `out`, and every chunk's place in it, must be ALIGNED.
    """
    part, written = np.zeros(WORD, theta.dtype), np.zeros(WORD, theta.dtype)
    cursor = _first_from(off, chunks[0, 1])
    for row in range(chunks.shape[0]):
        tensor, first, n_weights = chunks[row, 0], chunks[row, 1], chunks[row, 2]
        address, scale = addresses[tensor], scales[tensor]
        at = address + chunks[row, 3]
        rest, back = n_weights % WORD, first - chunks[row, 4]
        stop = first + n_weights - rest
        word = ALL_ON
        if address:
            for k in range(first, stop, WORD):
                _put_word(theta, out, k, k - back, word_at(at), scale, streamed)
                at += WORD // 8
        else:
            for k in range(first, stop, WORD):
                word, cursor = _without(off, cursor, k, WORD)
                _put_word(theta, out, k, k - back, word, scale, streamed)
        if rest:
            if address:
                word = _last_word(at, rest)
            else:
                word, cursor = _without(off, cursor, stop, rest)
            for k in range(rest):
                part[k] = theta[stop + k]
            write_word(part, written, 0, 0, word, scale)
            for k in range(rest):
                out[stop - back + k] = written[k]
    if streamed:
        settle()


@register_jitable
def _put_word(theta, out, at, to, word, scale, streamed):
    if streamed:
        stream_word(theta, out, at, to, word, scale)
    else:
        write_word(theta, out, at, to, word, scale)


@register_jitable
def _first_from(off, place):
    """The index of the first position from a place on. numpy's own search takes seconds to compile."""
    cursor, beyond = 0, off.shape[0]
    while cursor < beyond:
        middle = (cursor + beyond) // 2
        if off[middle] < place:
            cursor = middle + 1
        else:
            beyond = middle
    return cursor


@register_jitable
def _without(off, cursor, k, n):
    """The word of the n weights from k on, without those listed from `cursor` on; and the cursor behind them."""
    word = ALL_ON
    while cursor < off.shape[0] and off[cursor] < k + n:
        word = np.uint32(word & ~np.uint32(np.uint32(1) << np.uint32(off[cursor] - k)))
        cursor += 1
    return word, cursor


@register_jitable
def _last_word(address, rest):
    """The last bits of a tensor, where fewer than a word are left: nothing behind its bytes is read."""
    word = np.uint32(0)
    for byte in range((rest + 7) // 8):
        word = np.uint32(word | np.uint32(np.uint32(byte_at(address + byte)) << np.uint32(8 * byte)))
    return word


@intrinsic
def word_at(_context, address):
    """The 32 bits at an address; the first byte has the lowest."""
    return types.uint32(address), _load(32)


@intrinsic
def byte_at(_context, address):
    """The 8 bits at an address."""
    return types.uint8(address), _load(8)


def _load(n_bits):
    def generate(_context, builder, _signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(n_bits).as_pointer()), align=1)

    return generate


@intrinsic
def write_word(_context, theta, out, at, to, word, scale):  # noqa: ARG001
    """Write `out[to : to + 32]` from `theta[at : at + 32]`, the weights of which bits of `word` are ON."""
    return _word(theta, out, streamed=False)


@intrinsic
def stream_word(_context, theta, out, at, to, word, scale):  # noqa: ARG001
    """The same past the caches, which then need not fetch what is written over. `out[to]` must be ALIGNED."""
    return _word(theta, out, streamed=True)


@intrinsic
def settle(_context):
    """Let other threads see what was written past the caches, before anything that comes after."""

    def generate(context, builder, _signature, _args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def _word(theta, out, streamed):
    whole = theta.dtype == types.float32
    size, lanes = (4, FLOATS) if whole else (2, HALVES)

    def generate(context, builder, signature, args):
        source, target = (
            builder.bitcast(builder.gep(make_array(kind)(context, builder, array).data, [place]), lanes.as_pointer())
            for kind, array, place in zip(signature.args[:2], args[:2], args[2:4], strict=True)
        )
        nothing = ir.Constant(FLOATS, ir.Undefined)
        first = builder.insert_element(nothing, args[5], ir.Constant(ir.IntType(32), 0))
        scales = builder.shuffle_vector(first, nothing, _all_lanes(0))
        products = (_multiply if whole else _multiply_halves)(builder, builder.load(source, align=size), scales)
        on = builder.bitcast(args[4], ir.VectorType(ir.IntType(1), WORD))
        chosen = builder.select(on, products, ir.Constant(lanes, [0] * WORD))
        store = builder.store(chosen, target, align=size * ALIGNED if streamed else size)
        if streamed:
            store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(theta, out, types.int64, types.int64, types.uint32, types.float32), generate


def _multiply(builder, weights, scales):
    return builder.fmul(weights, scales)


def _multiply_halves(builder, weights, scales):
    """bfloat16 is the upper half of a float32. Round to the nearest, to the even one of two; no number stays none."""
    whole = builder.shl(builder.zext(weights, WORDS), _all_lanes(16))
    product = builder.fmul(builder.bitcast(whole, FLOATS), scales)
    bits = builder.bitcast(product, WORDS)
    odd = builder.and_(builder.lshr(bits, _all_lanes(16)), _all_lanes(1))
    rounded = builder.lshr(builder.add(builder.add(bits, _all_lanes(0x7FFF)), odd), _all_lanes(16))
    kept = builder.select(builder.fcmp_unordered("uno", product, product), _all_lanes(0x7FC0), rounded)
    return builder.trunc(kept, HALVES)


def _all_lanes(value):
    return ir.Constant(WORDS, [value] * WORD)
