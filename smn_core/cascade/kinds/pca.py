"""Whiten x by PCA. The components are numbers, or packed in 3 or 4 bits an entry.

z = ((x - mean) @ components.T) * scale
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from smn_core.cascade import codes
from smn_core.cascade.kinds.base import Kind, Tensors
from smn_core.errors import InvalidCascade
from smn_core.matrices import times


class Pca(Kind):
    """`mean [f]`, `components [q,f]`, `scale [q]`."""

    name = "pca"
    shapes: ClassVar = {"mean": ("f",), "components": ("q", "f"), "scale": ("q",)}
    quantised = ("components",)

    def apply(self, x: Float32[ndarray, "n f"], tensors: Tensors) -> Float32[ndarray, "n q"]:
        centred = x - tensors["mean"].astype(np.float32)
        z: ndarray = self.times(centred, tensors, "components") * tensors["scale"].astype(np.float32)
        return z

    def apply_slowly(self, x: Float64[ndarray, "f"], tensors: Tensors) -> Float64[ndarray, "q"]:
        z: ndarray = tensors["scale"] * (tensors["components"] @ (x - tensors["mean"]))
        return z


class PackedPca(Pca):
    """`pca` with packed components: rows of codes of `n_bits` (codes.py), `ceil(f * n_bits / 8)` bytes each."""

    n_bits: ClassVar[int]
    shapes: ClassVar = {"mean": ("f",), "components": ("q", "packed"), "scale": ("q",)}
    always_scaled = True

    def types_of(self, name: str) -> tuple[str, ...]:
        return ("uint8",) if name == "components" else super().types_of(name)

    def expected_size(self, letter: str, found: int, sizes: dict[str, int]) -> int:
        if letter == "packed":
            return codes.row_bytes(sizes["f"], self.n_bits)
        return super().expected_size(letter, found, sizes)

    def measure(self, mode: str, tensors: Tensors) -> dict[str, int]:
        sizes = super().measure(mode, tensors)
        if not codes.padding_is_clear(tensors["components"], self.n_bits, sizes["f"]):
            raise InvalidCascade(f"fusion.{mode}.components has a bit set past its last code")
        return sizes

    def times(self, x: Float32[ndarray, "n f"], tensors: Tensors, name: str) -> Float32[ndarray, "n q"]:
        packed, f = tensors[name], x.shape[1]

        def rows(start: int, stop: int) -> ndarray:
            return codes.to_levels(codes.unpack(packed[start:stop], self.n_bits, f), self.n_bits)

        return times(x, rows, len(packed), tensors[f"{name}_scale"])

    def dequantise(self, tensors: Tensors) -> dict[str, ndarray]:
        found = codes.unpack(tensors["components"], self.n_bits, len(tensors["mean"]))
        return super().dequantise({**tensors, "components": codes.to_levels(found, self.n_bits)})


class PcaInt3(PackedPca):
    """3 bits an entry."""

    name = "pca-int3"
    n_bits = 3


class PcaInt4(PackedPca):
    """4 bits an entry."""

    name = "pca-int4"
    n_bits = 4
