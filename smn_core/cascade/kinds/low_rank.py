"""Keep a few features of every mask, then whiten them together.

z = (concat over j of (x[j] - mean[j]) @ parts[j].T) @ components.T * scale
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from smn_core.cascade.kinds.base import Kind, Tensors
from smn_core.errors import InvalidCascade


class LowRank(Kind):
    """`mean [f]`, `parts [m,s,d]`, `components [q,m*s]`, `scale [q]`; s is how many features are kept of a mask's d."""

    name = "low-rank"
    shapes: ClassVar = {"mean": ("f",), "parts": ("m", "s", "d"), "components": ("q", "m*s"), "scale": ("q",)}
    quantised = ("components", "parts")

    def apply(self, x: Float32[ndarray, "n f"], tensors: Tensors) -> Float32[ndarray, "n q"]:
        parts, scales = tensors["parts"], tensors.get("parts_scale")
        centred = np.split(x - tensors["mean"].astype(np.float32), len(parts), axis=1)
        y = [
            self.times(part, {"part": parts[j], **({} if scales is None else {"part_scale": scales[j]})}, "part")
            for j, part in enumerate(centred)
        ]
        z: ndarray = self.times(np.concatenate(y, axis=1), tensors, "components")
        return z * tensors["scale"].astype(np.float32)

    def apply_slowly(self, x: Float64[ndarray, "f"], tensors: Tensors) -> Float64[ndarray, "q"]:
        centred = np.split(x - tensors["mean"], len(tensors["parts"]))
        y = np.concatenate([matrix @ part for matrix, part in zip(tensors["parts"], centred, strict=True)])
        z: ndarray = tensors["scale"] * (tensors["components"] @ y)
        return z

    def measure(self, mode: str, tensors: Tensors) -> dict[str, int]:
        sizes = super().measure(mode, tensors)
        if sizes["f"] != sizes["m"] * sizes["d"]:
            raise InvalidCascade(f"fusion.{mode}.mean is [{sizes['f']}], the parts take {sizes['m']} x {sizes['d']}")
        return sizes

    def check_fits(self, mode: str, tensors: Tensors, n_parts: int, n_features: int | None) -> None:
        m = len(tensors["parts"])
        if m != n_parts:
            raise InvalidCascade(f"fusion.{mode}.parts has {m} parts, the cascade {n_parts} masks")
        super().check_fits(mode, tensors, n_parts, n_features)
