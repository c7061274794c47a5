"""Project x by signs that a seed gives, then whiten it.

z = ((x @ R.T - mean) @ components.T) * scale
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from numpy import ndarray

from smn_core import bits
from smn_core.cascade.kinds.base import Kind, Tensors
from smn_core.errors import InvalidCascade
from smn_core.matrices import times

MAX_SIGNS = 2**27
"""Most entries of R. Its size is in no byte of the file, so a small file could ask for all memory."""


class RandomSigns(Kind):
    """`mean [p]`, `components [q,p]`, `scale [q]`; `R [p,f]` is drawn at the first use, and not stored."""

    name = "random"
    shapes: ClassVar = {"mean": ("p",), "components": ("q", "p"), "scale": ("q",)}
    quantised = ("components",)
    seeded = True

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed)
        self._drawn: dict[tuple[int, int], UInt8[ndarray, "p n_bytes"]] = {}

    def apply(self, x: Float32[ndarray, "n f"], tensors: Tensors) -> Float32[ndarray, "n q"]:
        f, signs = x.shape[1], self._signs(len(tensors["mean"]), x.shape[1])
        y = times(x, lambda start, stop: _signs_of(signs[start:stop], f), len(signs))
        z: ndarray = self.times(y - tensors["mean"].astype(np.float32), tensors, "components")
        return z * tensors["scale"].astype(np.float32)

    def drawn_bytes(self, tensors: Tensors, n_inputs: int) -> int:
        """Of R, packed: it is drawn at the first use, so that it counts before."""
        return len(tensors["mean"]) * bits.packed_bytes(n_inputs)

    def apply_slowly(self, x: Float64[ndarray, "f"], tensors: Tensors) -> Float64[ndarray, "q"]:
        assert self.seed is not None
        y = draw_signs(self.seed, len(tensors["mean"]), len(x)).astype(np.float64) @ x - tensors["mean"]
        z: ndarray = tensors["scale"] * (tensors["components"] @ y)
        return z

    def check_fits(self, _mode: str, tensors: Tensors, n_parts: int, n_features: int | None) -> None:
        """As in every kind. R takes any number of features f, but p is at most f and p * f at most MAX_SIGNS."""
        if n_features is None:
            return
        p, f = len(tensors["mean"]), n_parts * n_features
        if p > f or p * f > MAX_SIGNS:
            raise InvalidCascade(f"a random projection of {f} features to {p} is refused: too large")

    def _signs(self, n_rows: int, n_columns: int) -> UInt8[ndarray, "p n_bytes"]:
        """R, packed, drawn once for all modes of this size."""
        assert self.seed is not None
        if (n_rows, n_columns) not in self._drawn:
            self._drawn[n_rows, n_columns] = _draw(self.seed, n_rows, n_columns)
        return self._drawn[n_rows, n_columns]


def draw_signs(seed: int, n_rows: int, n_columns: int) -> Float32[ndarray, "p f"]:
    """`R[i,j] = +-1 / sqrt(f)`, + where bit j of SHAKE-256 of `smn-cascade/1 random <seed> <i>` is set.

    Bit j is bit j mod 8, least significant first, of byte j // 8. Every language draws the same signs, because no
    random number generator takes part.
    """
    return _signs_of(_draw(seed, n_rows, n_columns), n_columns)


def _draw(seed: int, n_rows: int, n_columns: int) -> UInt8[ndarray, "p n_bytes"]:
    n_bytes = bits.packed_bytes(n_columns)
    drawn = [hashlib.shake_256(f"smn-cascade/1 random {seed} {i}".encode()).digest(n_bytes) for i in range(n_rows)]
    return np.frombuffer(b"".join(drawn), np.uint8).reshape(n_rows, n_bytes)


def _signs_of(packed: UInt8[ndarray, "p n_bytes"], n_columns: int) -> Float32[ndarray, "p f"]:
    on = bits.unpack_fields(packed, 1, n_columns)
    sign = np.float32(1 / np.sqrt(n_columns))
    return np.where(on.view(np.bool_), sign, -sign)
