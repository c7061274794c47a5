"""Codec `context` of smn-mask/1, written from docs/formats.md alone: one weight after the other, in plain integers."""

from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext

import numpy as np

ONE = 1 << 24
STRENGTHS = [
    (3 * ONE // 20, 3 * ONE // 10, 3 * ONE // 2),
    (ONE, 2 * ONE, 4 * ONE),
    (8 * ONE, 32 * ONE, 16 * ONE),
    (1 << 46, 1 << 46, 1 << 46),
]
EVEN = 4


def tables() -> tuple[list[int], list[int], dict[int, int]]:
    with localcontext() as context:
        context.prec = 50
        root = Decimal(2) ** (Decimal(1) / 64)
        power = [round(2**16 * root**k) for k in range(64)]
        log = [round(64 * (1 + Decimal(m) / 256).ln() / Decimal(2).ln()) for m in range(256)]
        chance = {x: min(max(round(ONE / (1 + root**-x)), 1), ONE - 1) for x in range(-1536, 1537)}
    return power, log, chance


POWER, LOG, CHANCE = tables()


def clip(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def log(v: int) -> int:
    e = v.bit_length() - 1
    return 64 * e + LOG[(v >> (e - 8) if e >= 8 else v << (8 - e)) & 255]


class Factor:
    """What was seen and expected; the logarithm since the last renewal, and the chances since then."""

    def __init__(self, n: int = 0, expected: int = 0, strength: int = 0) -> None:
        self.n, self.expected, self.strength = n, expected, strength
        self.log, self.chances = 0, 0

    def settle(self) -> None:
        scale, total = clip(-self.log, -896, 896), min(self.chances, 2**47 - 1)
        octaves = scale >> 6
        power = POWER[scale & 63] << octaves if octaves >= 0 else POWER[scale & 63] >> -octaves
        added = (total * power) >> 16 if total < 2**31 else (total >> 16) * power
        self.expected, self.chances = min(self.expected + added, 2**52), 0

    def take(self) -> None:
        self.log = log(self.n + self.strength) - log(self.expected + self.strength)


def classes(weights: np.ndarray) -> tuple[int, int, list[list[tuple[int, int, int]]]]:
    """Rows, columns, and (sign, above, size) of every weight."""
    rows = weights.shape[0]
    bits = np.ascontiguousarray(weights, "<f4").reshape(rows, -1).view("<u4").tolist()
    columns = len(bits[0])
    sizes = [[(b & 0x7FFFFFFF) >> 15 for b in row] for row in bits]
    of_row = [sum(row) // columns for row in sizes]
    mean = sum(map(sum, sizes)) // (rows * columns)
    of_column = [sum(column) // rows - mean for column in zip(*sizes, strict=True)]
    return (
        rows,
        columns,
        [
            [
                (
                    bits[i][j] >> 31,
                    clip((sizes[i][j] - of_row[i] - of_column[j] + 64) >> 6, 0, 15),
                    clip((sizes[i][j] - mean) >> 7, 0, 7),
                )
                for j in range(columns)
            ]
            for i in range(rows)
        ],
    )


Code = Callable[[int, bool], bool]
"""Codes one bit: from its chance, and from whether it is OFF where that is known, whether it is OFF."""


def code_mask(
    weights: Mapping[str, np.ndarray],
    number: int,
    code: Code,
    off: Mapping[str, np.ndarray] | None,
    parent: Mapping[str, np.ndarray] | None = None,
    gains: list | None = None,
) -> dict:
    """OFF bits, flat, by tensor. `parent` are the OFF bits of the parent; what each tensor gains goes into `gains`."""
    found, known, counts = {}, {}, {}
    above_of_all, size_of_all = [(0, 0)] * 16, [(0, 0)] * 8
    all_off, all_on = 2**10, 2**19
    told: list = []
    kept = [0, 0]
    if parent is not None and number != EVEN:
        code_mask(weights, number, lambda _, bit: bit, parent, None, told)
    for index_of_tensor, (name, values) in enumerate(weights.items()):
        given = off[name].reshape(-1).tolist() if off is not None else [False] * values.size
        if number == EVEN:
            found[name] = np.array([code(ONE // 2, bit) for bit in given])
            continue
        out = {}
        if parent is not None:
            for t in np.flatnonzero(parent[name]).tolist():
                out[t] = code(clip(ONE * (2 * kept[0] + 1) // (2 * kept[1] + 2), 1, ONE - 1), given[t])
                kept = [kept[0] + out[t], kept[1] + 1]
        rows, columns, kinds = classes(values)
        key = ("".join(letter for letter in name if letter not in "0123456789"), rows, columns)
        lengths = (rows, columns, 2 * rows, 2 * columns, 16, 8)
        before = known.get(key, [[(0, 0)] * length for length in lengths])
        begun = [[(n >> 2, e >> 2) for n, e in group] for group in before[:4]]
        begun += [
            [((n >> 1) + (a >> 2), (e >> 1) + (b >> 2)) for (n, e), (a, b) in zip(group, of_all, strict=True)]
            for group, of_all in zip(before[4:], (above_of_all, size_of_all), strict=True)
        ]
        if parent is not None:
            begun = [
                [(n + (a >> 1), e + (b >> 1)) for (n, e), (a, b) in zip(*pair, strict=True)]
                for pair in zip(begun, told[index_of_tensor], strict=True)
            ]
        f, o = counts.get(key, (0, 0))
        rate = Factor(2 * ONE, clip(2 * ONE * (8 * o + all_on + 4) // (8 * f + all_off + 4), 1, 2**45))
        plain, signed, classed = STRENGTHS[number]
        groups = [
            [Factor(n, e, strength) for n, e in group]
            for group, strength in zip(begun, (plain, plain, signed, signed, classed, classed), strict=True)
        ]
        bits = code_tensor(rows, columns, kinds, rate, groups, given, code, out)
        gained = [
            [(factor.n - n, factor.expected - e) for factor, (n, e) in zip(group, start, strict=True)]
            for group, start in zip(groups, begun, strict=True)
        ]
        if gains is not None:
            gains.append(gained)
        known[key] = [
            [
                ((n >> 1) + a, (e >> 1) + b) if index < 4 else (n + a, e + b)
                for (n, e), (a, b) in zip(*pair, strict=True)
            ]
            for index, pair in enumerate(zip(before, gained, strict=True))
        ]
        above_of_all, size_of_all = (
            [(n + a, e + b) for (n, e), (a, b) in zip(of_all, new, strict=True)]
            for of_all, new in zip((above_of_all, size_of_all), gained[4:], strict=True)
        )
        u = sum(bits) - sum(out.values())
        v = len(bits) - len(out) - u
        counts[key] = ((f >> 1) + 256 * u, (o >> 1) + 256 * v)
        all_off, all_on = all_off * 4 // 5 + 256 * u, all_on * 4 // 5 + 256 * v
        found[name] = np.array(bits)
    return found


def code_tensor(
    rows: int, columns: int, kinds: list, rate: Factor, groups: list, given: list, code: Code, out: Mapping[int, bool]
) -> list:
    """`out` are the bits that are known already: they are left out."""
    row, column, row_sign, column_sign, above, size = groups
    bits = []
    for i in range(rows):
        of_row = [row[i], row_sign[2 * i], row_sign[2 * i + 1]]
        if i % 32 == 0:
            renew([*column, *column_sign, *above, *size, rate])
        for j in range(columns):
            if j % 64 == 0:
                renew(of_row)
            if i * columns + j in out:
                bits.append(out[i * columns + j])
                continue
            sign, a, q = kinds[i][j]
            its = [rate, row[i], column[j], row_sign[2 * i + sign], column_sign[2 * j + sign], above[a], size[q]]
            chance = CHANCE[clip(sum(factor.log for factor in its), -1536, 1536)]
            for factor in its:
                factor.chances += chance
            bits.append(code(chance, given[i * columns + j]))
            if bits[-1]:
                settle(of_row)
                for factor in its:
                    factor.n += ONE
                renew(of_row)  # settled already: what is left is the logarithm
                renew([column[j], column_sign[2 * j], column_sign[2 * j + 1]])
        settle(of_row)
    settle([*column, *column_sign, *above, *size])
    return bits


def settle(factors: list[Factor]) -> None:
    for factor in factors:
        factor.settle()


def renew(factors: list[Factor]) -> None:
    for factor in factors:
        factor.settle()
        factor.take()


def decode(
    stream: bytes, weights: Mapping[str, np.ndarray], parent: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The ON bits of every tensor, in its shape. `weights` are the backbone's, in layout order, as a parent's bits."""
    state = {"width": 2**32 - 1, "code": int.from_bytes(stream[1:5], "big"), "place": 5}

    def code(chance: int, _: bool) -> bool:
        bound = (state["width"] * chance) >> 24
        off = state["code"] < bound
        if not off:
            state["code"] -= bound
        state["width"] = bound if off else state["width"] - bound
        while state["width"] < 2**24:
            state["width"] <<= 8
            state["code"] = (state["code"] << 8) | stream[state["place"]]
            state["place"] += 1
        return off

    found = code_mask(weights, stream[0], code, None, _off(parent))
    assert state["code"] == 0 and state["place"] == len(stream)
    return {name: ~found[name].reshape(values.shape) for name, values in weights.items()}


def _off(on: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
    return {name: ~values.reshape(-1) for name, values in on.items()} if on is not None else None


def encode(
    bits: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    number: int,
    parent: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """The stream of these ON bits: the lower bound of the range that is left, as one long number."""
    state = {"width": 2**32 - 1, "low": 0, "bytes": 4}

    def code(chance: int, off: bool) -> bool:
        bound = (state["width"] * chance) >> 24
        if not off:
            state["low"] += bound
        state["width"] = bound if off else state["width"] - bound
        while state["width"] < 2**24:
            state["width"] <<= 8
            state["low"] <<= 8
            state["bytes"] += 1
        return off

    code_mask(weights, number, code, {name: ~bits[name] for name in weights}, _off(parent))
    return bytes([number]) + state["low"].to_bytes(state["bytes"], "big")
