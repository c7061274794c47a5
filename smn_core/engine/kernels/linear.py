"""A linear layer for the rows of many masks in one launch, without a copy of the weights for any of them.

    y[s[i]:s[i+1]] = x[s[i]:s[i+1]] @ (W * on[i]).T / alpha[i] + b * on_b[i] / alpha_b[i]

for the rows of every span i. There are two ways. `from_bits` multiplies every weight by its bit. `shared_base` corrects
the root's product by the OFF weights that a mask lists. A program computes a tile: rows of one span, and `TILE_OUT`
outputs. It sums products in float32 and applies `1 / alpha` to the sum. A span of the root, or of a mask that leaves
the layer as it is, costs the product alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from smn_core.engine.kernelmask import TILE_OUT, KernelLayout
from smn_core.engine.kernels.table import WIDTH, Table

TILE_ROWS = 64
# Inputs, and listed OFF weights, that a program takes at a time.
STEP_IN, STEP_OFF = 32, 16
TABLE_WIDTH = tl.constexpr(WIDTH)


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer's weight [o,i] and bias [o] in theta, and where masks have them.

    `tensor` and `bias_tensor` are indices in the layout; `bias_tensor` is -1 where the bias is not maskable.
    """

    weight: Float[Tensor, "o i"]
    bias: Float[Tensor, "o"] | None
    tensor: int
    bias_tensor: int = -1


@triton.jit
def _is_on(packed, element, inside):
    byte = tl.load(packed + (element >> 3), mask=inside, other=255).to(tl.int32)
    return ((byte >> (element & 7).to(tl.int32)) & 1) != 0


@triton.jit
def _multiply(
    x,
    weight,
    packed,
    first,
    rows,
    stop,
    columns,
    n_in,
    n_out,
    READ: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """`x[rows] @ (W * on)[columns].T`; the packed bits are read where READ, and taken for ON where not."""
    found = tl.full((ROWS, OUT), 0.0, tl.float32)
    for k in range(0, n_in, STEP):
        inputs = k + tl.arange(0, STEP)
        a = tl.load(
            x + rows[:, None] * n_in + inputs[None, :],
            mask=(rows[:, None] < stop) & (inputs[None, :] < n_in),
            other=0.0,
        )
        at = columns[None, :].to(tl.int64) * n_in + inputs[:, None]
        inside = (inputs[:, None] < n_in) & (columns[None, :] < n_out)
        b = tl.load(weight + at, mask=inside, other=0.0)
        if READ:
            b = tl.where(_is_on(packed, first + at, inside), b, 0.0)
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        found = tl.dot(a, b, found, input_precision=PRECISION)
    return found


@triton.jit
def _multiply_off(
    x,
    weight,
    off,
    begin,
    end,
    first,
    rows,
    stop,
    columns,
    n_in,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """`x[rows] @ (W * off)[columns].T`, by a product over the listed weights: STEP of x's columns at a time."""
    found = tl.full((ROWS, OUT), 0.0, tl.float32)
    for k in range(begin, end, STEP):
        entry = k + tl.arange(0, STEP)
        listed = entry < end
        at = tl.load(off + entry, mask=listed, other=0) - first
        a = tl.load(
            x + rows[:, None] * n_in + (at % n_in)[None, :],
            mask=(rows[:, None] < stop) & listed[None, :],
            other=0.0,
        )
        w = tl.load(weight + at, mask=listed, other=0.0)
        b = tl.where((at // n_in)[:, None] == columns[None, :], w[:, None], 0.0)
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        found = tl.dot(a, b, found, input_precision=PRECISION)
    return found


@triton.jit(do_not_specialize=["tensor", "first", "first_cut", "bias_tensor", "bias_first"])
def _linear(
    x,
    weight,
    bias,
    out,
    table,
    tensor,
    first,
    first_cut,
    bias_tensor,
    bias_first,
    n_in,
    n_out,
    block,
    ONLY_BITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_MASKED: tl.constexpr,
    SPANS: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    STEP: tl.constexpr,
    STEP_LIST: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    # Find the span of this tile, and its rows: tiles are counted span by span.
    tile = tl.program_id(0)
    i = tl.arange(0, SPANS)
    firsts = tl.load(table + i * TABLE_WIDTH) * block
    tiles = (tl.load(table + (i + 1) * TABLE_WIDTH) * block - firsts + ROWS - 1) // ROWS
    span = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    if span == SPANS:
        return
    before = tl.sum(tl.where(i < span, tiles, 0), 0)
    entry = table + span * TABLE_WIDTH
    stop = tl.load(entry + TABLE_WIDTH) * block
    rows = tl.load(entry) * block + (tile - before) * ROWS + tl.arange(0, ROWS)

    address = tl.load(entry + 1)
    masked = address != 0
    packed = address.to(tl.pointer_type(tl.uint8))
    scales = tl.load(entry + 2).to(tl.pointer_type(tl.float32))
    off = tl.load(entry + 3).to(tl.pointer_type(tl.int32))
    cuts = tl.load(entry + 4).to(tl.pointer_type(tl.int32)) + first_cut
    scale = tl.load(scales + tensor, mask=masked, other=1.0)
    group = tl.program_id(1)
    columns = group * OUT + tl.arange(0, OUT)

    begin = tl.load(cuts + group, mask=masked, other=0)
    end = tl.load(cuts + group + 1, mask=masked, other=0)
    n_listed = tl.load(cuts + tl.num_programs(1), mask=masked, other=0) - tl.load(cuts, mask=masked, other=0)
    read_bits = (n_listed == 0) & (scale != 1.0)
    if ONLY_BITS:
        read_bits = masked
    if read_bits:
        found = _multiply(
            x, weight, packed, first, rows, stop, columns, n_in, n_out, True, ROWS, OUT, STEP, PRECISION, WIDE
        )
    else:
        found = _multiply(
            x, weight, packed, first, rows, stop, columns, n_in, n_out, False, ROWS, OUT, STEP, PRECISION, WIDE
        )
        if not ONLY_BITS:
            found -= _multiply_off(
                x, weight, off, begin, end, first, rows, stop, columns, n_in, ROWS, OUT, STEP_LIST, PRECISION, WIDE
            )
    found *= scale
    if HAS_BIAS:
        b = tl.load(bias + columns, mask=columns < n_out, other=0.0).to(tl.float32)
        if BIAS_MASKED:  # noqa: SIM102 - one is decided by the compiler, the other by the mask
            if masked:
                on = _is_on(packed, bias_first + columns, columns < n_out)
                b = tl.where(on, b, 0.0) * tl.load(scales + bias_tensor)
        found += b[None, :]
    tl.store(
        out + rows[:, None] * n_out + columns[None, :],
        found.to(out.dtype.element_ty),
        mask=(rows[:, None] < stop) & (columns[None, :] < n_out),
    )


def from_bits(
    x: Float[Tensor, "r i"], layer: Layer, kernel_layout: KernelLayout, table: Table, block: int
) -> Float[Tensor, "r o"]:
    """Multiply by every weight times its bit, in one launch.

    Args:
        x: `block` rows for every image of the table.
    """
    return _launch(x, layer, kernel_layout, table, block, only_bits=True)


def shared_base(
    x: Float[Tensor, "r i"], layer: Layer, kernel_layout: KernelLayout, table: Table, block: int
) -> Float[Tensor, "r o"]:
    """`(x @ W.T - x @ (W * off[i]).T) / alpha[i] + b`, in one launch, the corrections of all spans in it.

    A span whose mask does not list the layer's OFF weights is read from its packed bits, in the same launch.
    """
    return _launch(x, layer, kernel_layout, table, block, only_bits=False)


def multiply_slowly(
    x: Float[Tensor, "r i"], weights: list[Tensor], biases: list[Tensor | None], stops: list[int]
) -> Tensor:
    """The slow, obvious way, which tests compare with: rows up to `stops[i]` through masked weights of span i."""
    parts, start = [], 0
    for weight, bias, stop in zip(weights, biases, stops, strict=True):
        parts.append(torch.nn.functional.linear(x[start:stop], weight, bias))
        start = stop
    return torch.cat(parts)


def _launch(x: Tensor, layer: Layer, kernel_layout: KernelLayout, table: Table, block: int, only_bits: bool) -> Tensor:
    n_out, n_in = layer.weight.shape
    out = x.new_empty(len(x), n_out)
    tensors = kernel_layout.layout.tensors
    bias_first = tensors[layer.bias_tensor].first_element if layer.bias_tensor >= 0 else 0
    # At most one tile of every span is not full; there are no more spans than images.
    n_images = len(x) // block
    n_tiles = min(n_images * triton.cdiv(block, TILE_ROWS), len(x) // TILE_ROWS + min(n_images, table.n_spans))
    exact = torch.get_float32_matmul_precision() == "highest"
    _linear[(n_tiles, triton.cdiv(n_out, TILE_OUT))](
        x,
        layer.weight,
        layer.bias,
        out,
        table.rows,
        layer.tensor,
        tensors[layer.tensor].first_element,
        kernel_layout.first_cut[layer.tensor],
        layer.bias_tensor,
        bias_first,
        n_in,
        n_out,
        block,
        ONLY_BITS=only_bits,
        HAS_BIAS=layer.bias is not None,
        BIAS_MASKED=layer.bias_tensor >= 0,
        SPANS=table.n_spans,
        ROWS=TILE_ROWS,
        OUT=TILE_OUT,
        STEP=STEP_IN,
        STEP_LIST=STEP_OFF,
        PRECISION="ieee" if exact else "tf32",
        WIDE=is_interpreted(),
    )
    return out


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels. It takes bfloat16 for integers, so its products get float32."""
    return bool(triton.knobs.runtime.interpret)
