"""What numba compiles to write theta': one pass over weights and bits, at the speed of memory.

    out[k] = theta[k] * scale  where bit k is ON, +0 where it is OFF

The product is taken in float32 and rounded once to the type of the weights. 32 bits of a mask are a word, and a word
chooses between 32 products and 0. The vectors are spelled out as LLVM's, because what LLVM makes of such loops by
itself is fifty times slower in some of their forms.
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
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

WORD = 32
ALL_ON = np.uint32(2**WORD - 1)
KINDS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16}
"""Types of weights that the loop writes, and the types as which it takes them: numpy has no bfloat16."""


@cache
def compile_loop(dtype: torch.dtype, positions: np.dtype[Any]) -> Callable[..., None]:
    """Compile `write` for a type of weights and of positions, once: the result is cached on disk, where that can be."""
    weights = "f4" if dtype == torch.float32 else "u2"
    signature = f"void({weights}[::1], {weights}[::1], i8[:,::1], i8[::1], f4[::1], i{positions.itemsize}[::1])"
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        loop = numba.njit(signature, cache=True, **options)(write)
    except RuntimeError:  # no folder to keep the compiled code in
        loop = numba.njit(signature, **options)(write)
    return cast("Callable[..., None]", loop)


def write(theta, out, chunks, addresses, scales, off):  # type: ignore[no-untyped-def]
    """Write theta' of some chunks of theta, in ascending order, one at least.

    Args:
        theta, out: flat arrays of weights.
        chunks: [n, 4] of every chunk: its tensor, the place of its first weight in theta, how many weights it has, and
            the place of its first byte among the packed bytes of its tensor.
        addresses: where the packed bytes of every tensor lie in memory; 0 where its OFF weights are listed.
        scales: of every tensor.
        off: ascending places in theta of the listed OFF weights of all tensors.
    """
    part, written = np.zeros(WORD, theta.dtype), np.zeros(WORD, theta.dtype)
    cursor, beyond = 0, off.shape[0]  # the first position from chunks[0, 1] on; numpy's search takes seconds to compile
    while cursor < beyond:
        middle = (cursor + beyond) // 2
        if off[middle] < chunks[0, 1]:
            cursor = middle + 1
        else:
            beyond = middle
    for row in range(chunks.shape[0]):
        tensor, first, n_weights = chunks[row, 0], chunks[row, 1], chunks[row, 2]
        address, scale = addresses[tensor], scales[tensor]
        listed, at = address == 0, address + chunks[row, 3]
        rest = n_weights % WORD
        stop = first + n_weights - rest
        if listed:
            for k in range(first, stop, WORD):
                write_word(theta, out, k, ALL_ON, scale)
        else:
            for k in range(first, stop, WORD):
                write_word(theta, out, k, word_at(at), scale)
                at += WORD // 8
        if rest:
            word = ALL_ON
            if not listed:
                word = np.uint32(0)
                for byte in range((rest + 7) // 8):
                    word = np.uint32(word | np.uint32(np.uint32(byte_at(at + byte)) << np.uint32(8 * byte)))
            for k in range(rest):
                part[k] = theta[stop + k]
            write_word(part, written, 0, word, scale)
            for k in range(rest):
                out[stop + k] = written[k]
        while cursor < off.shape[0] and off[cursor] < first + n_weights:
            out[off[cursor]] = 0
            cursor += 1


@intrinsic  # type: ignore[misc,untyped-decorator]
def word_at(_context, address):  # type: ignore[no-untyped-def]
    """The 32 bits at an address; the first byte has the lowest."""
    return types.uint32(address), _load(32)


@intrinsic  # type: ignore[misc,untyped-decorator]
def byte_at(_context, address):  # type: ignore[no-untyped-def]
    """The 8 bits at an address."""
    return types.uint8(address), _load(8)


def _load(n_bits):  # type: ignore[no-untyped-def]
    def generate(_context, builder, _signature, args):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(args[0], ir.IntType(n_bits).as_pointer()), align=1)

    return generate


@intrinsic  # type: ignore[misc,untyped-decorator]
def write_word(_context, theta, out, at, word, scale):  # type: ignore[no-untyped-def]
    """Write `out[at : at + 32]`, the weights of which bits of `word` are ON."""
    by_type = _choose_float32 if theta.dtype == types.float32 else _choose_bfloat16
    lanes = ir.VectorType(ir.FloatType() if theta.dtype == types.float32 else ir.IntType(16), WORD)

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        places = [
            builder.bitcast(
                builder.gep(make_array(kind)(context, builder, array).data, [args[2]]), lanes.as_pointer()
            )
            for kind, array in zip(signature.args[:2], args[:2], strict=True)
        ]
        size = theta.dtype.bitwidth // 8
        one = ir.Constant(ir.IntType(32), 0)
        vector = ir.VectorType(ir.FloatType(), WORD)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), args[4], one)
        scales = builder.shuffle_vector(
            first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), WORD), [0] * WORD)
        )
        products = by_type(builder, builder.load(places[0], align=size), scales)
        on = builder.bitcast(args[3], ir.VectorType(ir.IntType(1), WORD))
        builder.store(builder.select(on, products, ir.Constant(lanes, [0] * WORD)), places[1], align=size)
        return context.get_dummy_value()

    return types.void(theta, out, types.int64, types.uint32, types.float32), generate


def _choose_float32(builder, weights, scales):  # type: ignore[no-untyped-def]
    return builder.fmul(weights, scales)


def _choose_bfloat16(builder, weights, scales):  # type: ignore[no-untyped-def]
    """Half the bits of a float32, rounded to the nearest, to the even one of two; not a number stays that."""
    words, floats = ir.VectorType(ir.IntType(32), WORD), ir.VectorType(ir.FloatType(), WORD)

    def all_lanes(value):  # type: ignore[no-untyped-def]
        return ir.Constant(words, [value] * WORD)

    whole = builder.shl(builder.zext(weights, words), all_lanes(16))
    product = builder.fmul(builder.bitcast(whole, floats), scales)
    bits = builder.bitcast(product, words)
    odd = builder.and_(builder.lshr(bits, all_lanes(16)), all_lanes(1))
    rounded = builder.lshr(builder.add(builder.add(bits, all_lanes(0x7FFF)), odd), all_lanes(16))
    kept = builder.select(builder.fcmp_unordered("uno", product, product), all_lanes(0x7FC0), rounded)
    return builder.trunc(kept, ir.VectorType(ir.IntType(16), WORD))
