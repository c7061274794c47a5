"""Fusions of a cascade: the embeddings of root and experts, side by side -> one embedding.

With m = k + 1 parts of d features, `x [n, m*d] = concat(root, expert 1..k)`:

    concat     z = x
    pca        z = ((x - mean) @ components.T) * scale
    random     z = ((x @ R.T - mean) @ components.T) * scale            R [p, m*d] of signs that a seed gives
    low-rank   z = (concat over j of (x[j] - mean[j]) @ parts[j].T) @ components.T * scale

Each mode has tensors of its own. `components` and `parts` are float32, float16, or int8 with `components_scale [q]`,
`parts_scale [m,s]` that multiply them back; `pca-int3` and `pca-int4` are `pca` with components of that many bits.
docs/formats.md has them in full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core import bits
from smn_core.cascade import codes
from smn_core.errors import InvalidArgument, InvalidCascade

UNCONDITIONAL, CONDITIONAL = "unconditional", "conditional"
MODES = (UNCONDITIONAL, CONDITIONAL)
PACKED = {"pca-int3": 3, "pca-int4": 4}
"""Kinds whose components are packed codes (codes.py), and how many bits a code has."""
# m parts, d features, f = m * d, q components; p and s are the fusion's own.
SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "concat": {},
    "pca": {"mean": ("f",), "components": ("q", "f"), "scale": ("q",)},
    "random": {"mean": ("p",), "components": ("q", "p"), "scale": ("q",)},
    "low-rank": {"mean": ("f",), "parts": ("m", "s", "d"), "components": ("q", "m*s"), "scale": ("q",)},
    **{kind: {"mean": ("f",), "components": ("q", "packed"), "scale": ("q",)} for kind in PACKED},
}
KINDS = tuple(SHAPES)
QUANTISED = ("components", "parts")
PRECISIONS = ("float32", "float16", "int8")
MAX_SIGNS = 2**27
"""Most entries of a seeded projection: it takes memory that no byte of the file shows."""


@dataclass(frozen=True, eq=False)
class Fusion:
    """A kind, its tensors by mode, and for `random` the seed of the signs.

    Raises:
        InvalidCascade: an unknown kind or mode, a missing or extra tensor, a wrong type, a value that is not finite, or
            shapes that do not fit each other.
    """

    kind: str
    tensors: Mapping[str, Mapping[str, ndarray]] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise InvalidCascade(f"unknown fusion {self.kind!r}: there are {', '.join(KINDS)}")
        if (self.seed is not None) != (self.kind == "random"):
            raise InvalidCascade("a seed belongs to the fusion random, and to no other")
        if bool(self.tensors) == (self.kind == "concat"):
            raise InvalidCascade(f"the fusion {self.kind} has {'tensors' if self.tensors else 'no tensors'}")
        for mode, tensors in self.tensors.items():
            if mode not in MODES:
                raise InvalidCascade(f"unknown mode {mode!r}: there are {' and '.join(MODES)}")
            self._check_tensors(mode, tensors)
            self._sizes(mode)

    def has(self, mode: str) -> bool:
        """Whether it fuses in this mode."""
        return mode in MODES and (self.kind == "concat" or mode in self.tensors)

    def width(self, mode: str, n_parts: int, n_features: int) -> int:
        """Components of a fused embedding."""
        return n_parts * n_features if self.kind == "concat" else len(self.tensors[mode]["scale"])

    @property
    def n_inputs(self) -> int | None:
        """Width of x where the tensors say it."""
        found = [s["f"] for s in map(self._sizes, self.tensors) if "f" in s]
        return found[0] if found else None

    def require_fits(self, n_parts: int, n_features: int | None) -> None:
        """Raise InvalidCascade unless every mode takes embeddings of `n_parts` masks, each `n_features` wide."""
        for mode in self.tensors:
            sizes = self._sizes(mode)
            if sizes.get("m", n_parts) != n_parts:
                raise InvalidCascade(f"fusion.{mode}.parts has {sizes['m']} parts, the cascade {n_parts} masks")
            if "f" in sizes and sizes["f"] % n_parts:
                raise InvalidCascade(f"the {mode} fusion takes {sizes['f']} features, no multiple of {n_parts} masks")
            if n_features is None:
                continue
            wanted = n_parts * n_features
            if sizes.get("f", wanted) != wanted:
                raise InvalidCascade(
                    f"the {mode} fusion takes {sizes['f']} features, {n_parts} masks give {n_parts} x {n_features}"
                )
            if "p" in sizes and (sizes["p"] > wanted or sizes["p"] * wanted > MAX_SIGNS):
                raise InvalidCascade(f"a random projection of {wanted} features to {sizes['p']} is refused: too large")

    def apply(self, mode: str, x: Float32[ndarray, "n f"]) -> Float32[ndarray, "n q"]:
        """Fuse rows of concatenated embeddings.

        Raises:
            InvalidArgument: the fusion does not have the mode.
        """
        if not self.has(mode):
            raise InvalidArgument(f"the cascade has no {mode} mode; it has {', '.join(self.tensors)}")
        if self.kind == "concat":
            return x
        t = self._ready[mode]
        if self.kind == "random":
            y = x @ self._signs(len(t["mean"]), x.shape[1]).T - t["mean"]
        elif self.kind == "low-rank":
            m, _, d = t["parts"].shape
            centred = (x - t["mean"]).reshape(-1, m, d).transpose(1, 0, 2)
            y = (centred @ t["parts"].transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(x), -1)
        else:
            y = x - t["mean"]
        return (y @ t["components"].T) * t["scale"]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as they are stored."""
        return sum(array.nbytes for tensors in self.tensors.values() for array in tensors.values())

    @cached_property
    def _ready(self) -> dict[str, dict[str, ndarray]]:
        """Every tensor as float32, quantised ones multiplied back."""
        return {
            mode: {name: dequantised(self.kind, tensors, name) for name in SHAPES[self.kind]}
            for mode, tensors in self.tensors.items()
        }

    @cached_property
    def _drawn(self) -> dict[tuple[int, int], ndarray]:
        return {}

    def _signs(self, n_rows: int, n_columns: int) -> Float32[ndarray, "p f"]:
        if (n_rows, n_columns) not in self._drawn:
            assert self.seed is not None
            self._drawn[n_rows, n_columns] = signs(self.seed, n_rows, n_columns)
        return self._drawn[n_rows, n_columns]

    def _check_tensors(self, mode: str, tensors: Mapping[str, ndarray]) -> None:
        wanted = set(SHAPES[self.kind])
        for name in QUANTISED:
            if name in tensors and (tensors[name].dtype == np.int8 or self.kind in PACKED):
                wanted.add(f"{name}_scale")
        if missing := sorted(wanted - set(tensors)):
            raise InvalidCascade(f"fusion.{mode}.{missing[0]} is missing")
        if extra := sorted(set(tensors) - wanted):
            raise InvalidCascade(f"fusion.{mode}.{extra[0]} is not a tensor of the fusion {self.kind}")
        for name, array in tensors.items():
            allowed = self._types(name)
            if array.dtype.name not in allowed:
                raise InvalidCascade(f"fusion.{mode}.{name} is {array.dtype}, expected {' or '.join(allowed)}")
            if not np.isfinite(array.astype(np.float32)).all():
                raise InvalidCascade(f"fusion.{mode}.{name} has a value that is not finite")

    def _types(self, name: str) -> tuple[str, ...]:
        """The types that a tensor may have."""
        if name in QUANTISED:
            return ("uint8",) if self.kind in PACKED else PRECISIONS
        return PRECISIONS[:1] if name.endswith("_scale") else PRECISIONS[:2]

    def _sizes(self, mode: str) -> dict[str, int]:
        """The sizes that the letters of `SHAPES` stand for; InvalidCascade where two tensors disagree."""
        tensors, sizes = self.tensors[mode], dict[str, int]()
        for name, letters in SHAPES[self.kind].items():
            shape = tensors[name].shape
            if len(shape) != len(letters) or 0 in shape:
                raise InvalidCascade(f"fusion.{mode}.{name} is {list(shape)}, expected [{','.join(letters)}]")
            for letter, size in zip(letters, shape, strict=True):
                if letter == "packed":
                    expected = codes.row_bytes(sizes["f"], PACKED[self.kind])
                else:
                    expected = sizes["m"] * sizes["s"] if letter == "m*s" else sizes.setdefault(letter, size)
                if size != expected:
                    raise InvalidCascade(f"fusion.{mode}.{name} is {list(shape)}: {letter} is {expected} elsewhere")
            scale = tensors.get(f"{name}_scale")
            if scale is not None and scale.shape != shape[:-1]:
                raise InvalidCascade(f"fusion.{mode}.{name}_scale is {list(scale.shape)}, expected {list(shape[:-1])}")
        if self.kind in PACKED and not codes.padding_is_clear(tensors["components"], PACKED[self.kind], sizes["f"]):
            raise InvalidCascade(f"fusion.{mode}.components has a bit set past its last code")
        if "d" in sizes and sizes["f"] != sizes["m"] * sizes["d"]:
            raise InvalidCascade(f"fusion.{mode}.mean is [{sizes['f']}], the parts take {sizes['m']} x {sizes['d']}")
        return sizes


def signs(seed: int, n_rows: int, n_columns: int) -> Float32[ndarray, "p f"]:
    """`R[i,j] = +-1 / sqrt(f)`, + where bit j of SHAKE-256 of `smn-cascade/1 random <seed> <i>` is set.

    Bit j is bit j mod 8, least significant first, of byte j // 8: the same in every language, whatever its generators.
    """
    n_bytes = -(-n_columns // 8)
    drawn = [hashlib.shake_256(f"smn-cascade/1 random {seed} {i}".encode()).digest(n_bytes) for i in range(n_rows)]
    on = [bits.unpack(np.frombuffer(row, np.uint8), n_columns) for row in drawn]
    return (np.where(np.stack(on), 1.0, -1.0) / np.sqrt(n_columns)).astype(np.float32)


def dequantised(kind: str, tensors: Mapping[str, ndarray], name: str) -> ndarray:
    """One tensor of a fusion as float32, unpacked and multiplied by its `_scale` where it has one."""
    values, scale = tensors[name], tensors.get(f"{name}_scale")
    if kind in PACKED and name in QUANTISED:
        n_bits = PACKED[kind]
        values = codes.levels(codes.unpack(values, n_bits, len(tensors["mean"])), n_bits)
    values = values.astype(np.float32)
    return values if scale is None else values * scale[..., None]


def quantise(name: str, values: ndarray, precision: str) -> dict[str, ndarray]:
    """A tensor as it is stored: float32, float16, or int8 with one scale for each vector of the last axis.

    Raises:
        InvalidArgument: an unknown precision, or values that float16 does not hold.
    """
    if precision not in PRECISIONS:
        raise InvalidArgument(f"unknown precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if precision != "int8":
        return {name: values.astype(precision)}
    largest = np.maximum(np.abs(values).max(-1), 1e-30)
    scale = (largest / 127).astype(np.float32)
    return {name: np.rint(values / scale[..., None]).clip(-127, 127).astype(np.int8), f"{name}_scale": scale}
