"""What all kinds of fusion share: which tensors a kind has, the checks of them, and their values as float32."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from smn_core.errors import InvalidCascade
from smn_core.matrices import PRECISIONS, dequantise, times

Tensors = Mapping[str, ndarray]
"""The tensors of one mode by name."""


class Kind(ABC):
    """One formula that fuses rows x into rows z, and the tensors that it needs.

    A cascade of m masks with d features each gives `x [n,f]`, `f = m * d`: the embeddings of root and experts, side by
    side. z has q components.

    A new kind is a subclass with `name`, `shapes`, `apply` and `apply_slowly`, a line in `kinds/__init__.py`, and an
    entry in docs/formats.md. A fusion makes one object of its kind for all its modes.
    """

    name: ClassVar[str]
    """As the file's metadata key `fusion` says it."""
    shapes: ClassVar[Mapping[str, tuple[str, ...]]]
    """The axes of every tensor. Equal letters are equal sizes, and `a*b` is a product of sizes met before."""
    quantised: ClassVar[tuple[str, ...]] = ()
    """Tensors that may be int8. `<name>_scale` is then beside them: one number for each vector of the last axis."""
    always_scaled: ClassVar[bool] = False
    """Whether they have their scale in every type, not in int8 alone."""
    seeded: ClassVar[bool] = False
    """Whether a seed belongs to it."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    @abstractmethod
    def apply(self, x: Float32[ndarray, "n f"], tensors: Tensors) -> Float32[ndarray, "n q"]:
        """Fuse all rows at once; `tensors` are as they are stored, and matrices among them go through `times`."""

    @abstractmethod
    def apply_slowly(self, x: Float64[ndarray, "f"], tensors: Tensors) -> Float64[ndarray, "q"]:
        """What `apply` must agree with: the formula of docs/formats.md for one row, in float64, of `dequantise`."""

    def width(self, tensors: Tensors, n_inputs: int) -> int:
        """q, the components of a fused embedding: one for each number of `scale`, or all of x where there is none."""
        return len(tensors["scale"]) if "scale" in self.shapes else n_inputs

    def times(self, x: Float32[ndarray, "n f"], tensors: Tensors, name: str) -> Float32[ndarray, "n q"]:
        """`x @ tensor.T`, without the tensor in float32."""
        matrix = tensors[name]
        return times(x, lambda start, stop: matrix[start:stop], len(matrix), tensors.get(f"{name}_scale"))

    def drawn_bytes(self, _tensors: Tensors, _n_inputs: int) -> int:
        """Bytes that it keeps beside its tensors."""
        return 0

    def dequantise(self, tensors: Tensors) -> dict[str, ndarray]:
        """Every tensor of `shapes` as float32, without its scale."""
        return {name: dequantise(tensors, name) for name in self.shapes}

    def check(self, mode: str, tensors: Tensors) -> None:
        """Check names, types, values and shapes of the tensors of one mode.

        Raises:
            InvalidCascade: a tensor breaks a rule of the format; the message names it.
        """
        self._check_names(mode, tensors)
        for name, array in tensors.items():
            allowed = self.types_of(name)
            if array.dtype.name not in allowed:
                raise InvalidCascade(f"fusion.{mode}.{name} is {array.dtype}, expected {' or '.join(allowed)}")
            if not np.isfinite(array.astype(np.float32)).all():
                raise InvalidCascade(f"fusion.{mode}.{name} has a value that is not finite")
        self.measure(mode, tensors)

    def check_fits(self, mode: str, tensors: Tensors, n_parts: int, n_features: int | None) -> None:
        """Check that a mode takes embeddings of `n_parts` masks, each `n_features` wide (None: not known yet).

        Raises:
            InvalidCascade: it takes another number of features.
        """
        f = self.measure(mode, tensors).get("f")
        if f is None:
            return
        if f % n_parts:
            raise InvalidCascade(f"the {mode} fusion takes {f} features, no multiple of {n_parts} masks")
        if n_features is not None and f != n_parts * n_features:
            raise InvalidCascade(f"the {mode} fusion takes {f} features, {n_parts} masks give {n_parts} x {n_features}")

    def measure(self, mode: str, tensors: Tensors) -> dict[str, int]:
        """The size that every letter of `shapes` stands for.

        Raises:
            InvalidCascade: two tensors disagree about a letter, or a scale does not fit its tensor.
        """
        sizes: dict[str, int] = {}
        for name, letters in self.shapes.items():
            shape = tensors[name].shape
            if len(shape) != len(letters) or 0 in shape:
                raise InvalidCascade(f"fusion.{mode}.{name} is {list(shape)}, expected [{','.join(letters)}]")
            for letter, size in zip(letters, shape, strict=True):
                expected = self.expected_size(letter, size, sizes)
                if size != expected:
                    raise InvalidCascade(f"fusion.{mode}.{name} is {list(shape)}: {letter} is {expected} elsewhere")
            scale = tensors.get(f"{name}_scale")
            if scale is not None and scale.shape != shape[:-1]:
                raise InvalidCascade(f"fusion.{mode}.{name}_scale is {list(scale.shape)}, expected {list(shape[:-1])}")
        return sizes

    def expected_size(self, letter: str, found: int, sizes: dict[str, int]) -> int:
        """What the axis `letter` must be; a letter that is met for the first time takes the size that was found."""
        if "*" in letter:
            return math.prod(sizes[factor] for factor in letter.split("*"))
        return sizes.setdefault(letter, found)

    def types_of(self, name: str) -> tuple[str, ...]:
        """The types that a tensor may have."""
        if name in self.quantised:
            return PRECISIONS
        return PRECISIONS[:1] if name.endswith("_scale") else PRECISIONS[:2]

    def _check_names(self, mode: str, tensors: Tensors) -> None:
        wanted = set(self.shapes)
        for name in self.quantised:
            if name in tensors and (tensors[name].dtype == np.int8 or self.always_scaled):
                wanted.add(f"{name}_scale")
        if missing := sorted(wanted - set(tensors)):
            raise InvalidCascade(f"fusion.{mode}.{missing[0]} is missing")
        if extra := sorted(set(tensors) - wanted):
            raise InvalidCascade(f"fusion.{mode}.{extra[0]} is not a tensor of the fusion {self.name}")
