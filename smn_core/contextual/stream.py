"""The bits of a whole mask <-> the bytes of codec `context`: tensors in layout order, each with what the former taught.

A stream is one byte, the number of a row of STRENGTHS, and the bytes of a range coder. The encoder tries every row and
keeps the shortest stream.

Where a mask has a parent, the weights that are OFF there have a chance of their own. For the others the parent's tensor
is run through the same model first: half of the evidence that it leaves goes into what the mask's tensor begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from smn_core import bits
from smn_core.contextual.classes import Classes, as_matrix
from smn_core.contextual.loop import N_ABOVE, N_SIZE, ONE, compile_loop
from smn_core.contextual.tables import make_tables
from smn_core.errors import InvalidMask
from smn_core.layout import Layout, MaskableTensor

NEVER = 1 << 46
"""A strength that leaves a factor at 1."""
STRENGTHS = (
    # of rows and columns, of rows and columns by sign, of classes
    (ONE * 3 // 20, ONE * 3 // 10, ONE * 3 // 2),
    (ONE, ONE * 2, ONE * 4),
    (ONE * 8, ONE * 32, ONE * 16),
    (NEVER, NEVER, NEVER),
)
EVENLY = len(STRENGTHS)
"""Every bit is OFF with a chance of one half: no mask takes more than its raw bits and a few bytes."""
RATE_STRENGTH = 2
MAX_RATE_EXPECTED = 1 << 45
SPARE_BYTES = 64
MAX_EXTRA_BYTES = SPARE_BYTES + 1
"""The most bytes that a stream has beyond those of the raw bits."""
MASK_32 = (1 << 32) - 1


def encode_bits(
    packed: UInt8[ndarray, "n_bytes"],
    layout: Layout,
    classes: Classes,
    parent: UInt8[ndarray, "n_bytes"] | None = None,
) -> UInt8[ndarray, "n"]:
    """The shortest stream of a mask's bits, against those of a parent. Equal bits give equal bytes."""
    streams = [_encode(packed, layout, classes, number, parent) for number in range(EVENLY + 1)]
    return min((stream for stream in streams if stream is not None), key=len)


def decode_bits(
    stream: UInt8[ndarray, "n"],
    layout: Layout,
    classes: Classes,
    parent: UInt8[ndarray, "n_bytes"] | None = None,
) -> UInt8[ndarray, "n_bytes"]:
    """The bits of a whole mask, in time and memory that the layout bounds, whatever the stream holds.

    Raises:
        InvalidMask: not exactly the stream of such a mask: truncated, with more behind it, damaged, or coded with
            other weights or another parent.
    """
    if not stream.size or stream[0] > EVENLY:
        raise InvalidMask("the coded bits do not begin with a number of strengths that is known")
    data = stream[1:].copy()  # the loop takes arrays that may be written to
    coder = np.zeros(5, np.int64)
    coder[0] = int.from_bytes(data[:4].tobytes().ljust(4, b"\0"), "big")
    coder[1], coder[2] = MASK_32, 4
    packed = np.empty(layout.n_bytes, np.uint8)
    one = _Stream(True, int(stream[0]), classes, coder, data, parent)
    for tensor in layout:
        off = np.zeros(tensor.n_weights, np.uint8)
        one.code(tensor, off)
        packed[tensor.bytes] = bits.pack(off == 0)
        if coder[2] > data.size:
            raise InvalidMask(f"the coded bits end within {tensor.name}: the file is damaged or truncated")
    if coder[0] or coder[2] != data.size:
        raise InvalidMask(
            "the coded bits leave something over: they are damaged, or coded with other weights or another parent"
        )
    return packed


def _encode(
    packed: UInt8[ndarray, "n_bytes"],
    layout: Layout,
    classes: Classes,
    number: int,
    parent: UInt8[ndarray, "n_bytes"] | None = None,
) -> UInt8[ndarray, "n"] | None:
    """The stream with one row of strengths; None where it is longer than the raw bits."""
    room = np.empty(1 + packed.size + SPARE_BYTES, np.uint8)
    room[0] = number
    # The coder's first byte is always 0 and is not kept: its place is the byte before `room[1:]`.
    coder = np.array([0, MASK_32, -1, 0, 1], np.int64)
    one = _Stream(False, number, classes, coder, room[1:], parent)
    for tensor in layout:
        one.code(tensor, _off(packed, tensor))
        if coder[2] > packed.size + SPARE_BYTES:
            return None
    compile_loop("finish")(coder, room[1:])
    # A carry is given out with the next byte, so one is always pending: the last is no part of the number.
    return room[: 1 + int(coder[2])] if coder[2] <= packed.size + SPARE_BYTES else None


def _off(packed: UInt8[ndarray, "n_bytes"], tensor: MaskableTensor) -> UInt8[ndarray, "n"]:
    """1 where a weight of a tensor is OFF."""
    return (~bits.unpack(packed[tensor.bytes], tensor.n_weights)).view(np.uint8)


@dataclass
class _Evidence:
    """Of the factors of one tensor, or of many: [2, n], what was seen and what was expected."""

    row: Int64[ndarray, "2 r"]
    column: Int64[ndarray, "2 c"]
    row_sign: Int64[ndarray, "2 2*r"]
    column_sign: Int64[ndarray, "2 2*c"]
    above: Int64[ndarray, "2 16"]
    size: Int64[ndarray, "2 8"]

    @classmethod
    def none(cls, n_rows: int, n_columns: int) -> _Evidence:
        counts = (n_rows, n_columns, 2 * n_rows, 2 * n_columns, N_ABOVE, N_SIZE)
        return cls.of([np.zeros((2, n), np.int64) for n in counts])

    @classmethod
    def of(cls, arrays: Sequence[Int64[ndarray, "2 _"]]) -> _Evidence:
        row, column, row_sign, column_sign, above, size = arrays
        return cls(row, column, row_sign, column_sign, above, size)

    @property
    def arrays(self) -> tuple[ndarray, ...]:
        return self.row, self.column, self.row_sign, self.column_sign, self.above, self.size

    def copy(self) -> _Evidence:
        return _Evidence.of([array.copy() for array in self.arrays])

    def since(self, begun: _Evidence) -> _Evidence:
        """What was gained."""
        return _Evidence.of([after - before for before, after in zip(begun.arrays, self.arrays, strict=True)])

    def with_half_of(self, told: _Evidence) -> _Evidence:
        return _Evidence.of([own + (other >> 1) for own, other in zip(self.arrays, told.arrays, strict=True)])


@dataclass
class _Memory:
    """What the tensors so far have taught: by kind and shape the evidence, and how many weights were OFF and ON."""

    of_kind: dict[tuple[str, tuple[int, ...]], _Evidence] = field(default_factory=dict)
    of_all: _Evidence = field(default_factory=lambda: _Evidence.none(0, 0))
    counts_of_kind: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = field(default_factory=dict)
    counts: tuple[int, int] = (1 << 10, 1 << 19)  # an OFF weight in 512, as if 4 had been seen

    def start(self, tensor: MaskableTensor) -> tuple[_Evidence, Int64[ndarray, "2 1"]]:
        """Evidence and rate that a tensor begins with."""
        kind, shape = kind_of(tensor), as_matrix(tensor.shape)
        known = self.of_kind.get((kind, shape)) or _Evidence.none(*shape)
        rows = [array >> 2 for array in known.arrays[:4]]
        above = (known.above >> 1) + (self.of_all.above >> 2)
        size = (known.size >> 1) + (self.of_all.size >> 2)
        off, on = self.counts_of_kind.get((kind, shape), (0, 0))
        off, on = 8 * off + self.counts[0] + 4, 8 * on + self.counts[1] + 4
        expected = min(max(RATE_STRENGTH * ONE * on // off, 1), MAX_RATE_EXPECTED)
        return _Evidence.of([*rows, above, size]), np.array([[RATE_STRENGTH * ONE], [expected]], np.int64)

    def learn(self, tensor: MaskableTensor, gained: _Evidence, n_off: int, n_on: int) -> None:
        """Of a tensor: what its factors gained, and how many weights were OFF and ON."""
        kind, shape = kind_of(tensor), as_matrix(tensor.shape)
        known = self.of_kind.get((kind, shape)) or _Evidence.none(*shape)
        rows = [(a >> 1) + b for a, b in zip(known.arrays[:4], gained.arrays[:4], strict=True)]
        self.of_kind[kind, shape] = _Evidence.of([*rows, known.above + gained.above, known.size + gained.size])
        self.of_all.above += gained.above
        self.of_all.size += gained.size
        off, on = 256 * n_off, 256 * n_on  # in steps of 1/256 of a weight
        before_off, before_on = self.counts_of_kind.get((kind, shape), (0, 0))
        self.counts_of_kind[kind, shape] = (before_off >> 1) + off, (before_on >> 1) + on
        self.counts = self.counts[0] * 4 // 5 + off, self.counts[1] * 4 // 5 + on


def kind_of(tensor: MaskableTensor) -> str:
    """The name of a tensor without its digits: what the same place of another block is called too."""
    return "".join(letter for letter in tensor.name if letter not in "0123456789")


@dataclass
class _Stream:
    """A stream while it is written or read, with what its tensors so far have taught.

    Attributes:
        parent: the bits that the mask is coded against.
        of_parent: what the parent's tensors have taught.
        kept: how many weights that are OFF in the parent are OFF in the mask too, and how many there were.
    """

    decodes: bool
    number: int
    classes: Classes
    coder: Int64[ndarray, "5"]
    data: UInt8[ndarray, "n_coded"]
    parent: UInt8[ndarray, "n_bytes"] | None
    memory: _Memory = field(default_factory=_Memory)
    of_parent: _Memory = field(default_factory=_Memory)
    kept: Int64[ndarray, "2"] = field(default_factory=lambda: np.zeros(2, np.int64))

    def code(self, tensor: MaskableTensor, off: UInt8[ndarray, "n"]) -> None:
        """Code one tensor, and learn from it."""
        if self.number == EVENLY:
            compile_loop("code_evenly")(self.decodes, off, tensor.n_weights, self.coder, self.data)
            return
        classes, end = self.classes(tensor), np.array([tensor.n_weights])
        begun, rate = self.memory.start(tensor)
        places = end[:0]
        if self.parent is not None:
            off_there = _off(self.parent, tensor)
            places = np.flatnonzero(off_there)
            compile_loop("code_kept")(self.decodes, off, places, self.kept, self.coder, self.data)
            begun = begun.with_half_of(self._learn_from_parent(tensor, off_there, classes))
        known = np.concatenate([places, end])
        evidence = begun.copy()
        self._run(self.decodes, tensor, off, classes, known, rate, evidence, self.coder, self.data)
        n_known = len(places)
        n_off = int(np.count_nonzero(off)) - int(np.count_nonzero(off[places]))
        self.memory.learn(tensor, evidence.since(begun), n_off, tensor.n_weights - n_known - n_off)

    def _learn_from_parent(
        self, tensor: MaskableTensor, off: UInt8[ndarray, "n"], classes: UInt8[ndarray, "n"]
    ) -> _Evidence:
        """What the factors gain in a tensor of the parent, which is coded into nothing."""
        begun, rate = self.of_parent.start(tensor)
        evidence, nowhere = begun.copy(), np.array([0, MASK_32, 0, 0, 1], np.int64)
        self._run(
            False, tensor, off, classes, np.array([tensor.n_weights]), rate, evidence, nowhere, np.empty(0, np.uint8)
        )
        gained, n_off = evidence.since(begun), int(np.count_nonzero(off))
        self.of_parent.learn(tensor, gained, n_off, tensor.n_weights - n_off)
        return gained

    def _run(
        self,
        decodes: bool,
        tensor: MaskableTensor,
        off: UInt8[ndarray, "n"],
        classes: UInt8[ndarray, "n"],
        known: Int64[ndarray, "k"],
        rate: Int64[ndarray, "2 1"],
        evidence: _Evidence,
        coder: Int64[ndarray, "5"],
        data: UInt8[ndarray, "n_coded"],
    ) -> None:
        tables, strengths = make_tables(), np.array(STRENGTHS[self.number], np.int64)
        compile_loop("code_tensor")(
            decodes, off, *as_matrix(tensor.shape), classes, known, rate, *evidence.arrays, strengths,
            tables.powers, tables.logarithms, tables.chances, coder, data,
        )  # fmt: skip
