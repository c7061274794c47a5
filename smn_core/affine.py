"""The map of a mask: a closed-form correction of its embeddings, stored in the mask's file.

    diagonal    z' = (z - mean) * scale              mean [d], scale [d]
    matrix      z' = (z - mean) @ matrix.T           mean [d], matrix [d,d]

A matrix is float32, float16, or int8 with `matrix_scale [d]`, one number a row that multiplies it back. The format is
docs/formats.md, "Affine".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.errors import InvalidArgument, InvalidMask
from smn_core.matrices import PRECISIONS, dequantise, quantise

DIAGONAL, MATRIX = "diagonal", "matrix"
NAMES = ("mean", "scale", "matrix", "matrix_scale")


@dataclass(frozen=True, eq=False)
class Affine:
    """One of the two forms, its tensors as they are stored. Immutable.

    Raises:
        InvalidMask: a tensor is missing, has another shape or type than the form's, is not finite, or a scale is not
            above 0; the message names the tensor.
    """

    mean: ndarray
    scale: ndarray | None = None
    matrix: ndarray | None = None
    matrix_scale: ndarray | None = None

    def __post_init__(self) -> None:
        if (self.scale is None) == (self.matrix is None):
            raise InvalidMask("a map has either affine.scale or affine.matrix")
        if self.mean.ndim != 1 or not len(self.mean):
            raise InvalidMask(f"affine.mean is {list(self.mean.shape)}, expected [D]")
        quantised = self.matrix is not None and self.matrix.dtype == np.int8
        if quantised != (self.matrix_scale is not None):
            raise InvalidMask("affine.matrix_scale belongs to an int8 affine.matrix, and to no other")
        d = len(self.mean)
        for name, array in self.tensors().items():
            shape = (d, d) if name == "matrix" else (d,)
            allowed = PRECISIONS if name == "matrix" else PRECISIONS[:1]
            if array.shape != shape:
                raise InvalidMask(f"affine.{name} is {list(array.shape)}, expected {list(shape)}")
            if array.dtype.name not in allowed:
                raise InvalidMask(f"affine.{name} is {array.dtype}, expected {' or '.join(allowed)}")
            if not np.isfinite(array.astype(np.float32)).all():
                raise InvalidMask(f"affine.{name} has a value that is not finite")
            if name.endswith("scale") and (array <= 0).any():
                raise InvalidMask(f"affine.{name} has a value that is not above 0")
            array.setflags(write=False)

    @property
    def form(self) -> str:
        return DIAGONAL if self.scale is not None else MATRIX

    @property
    def n_features(self) -> int:
        return len(self.mean)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as they are stored."""
        return sum(array.nbytes for array in self.tensors().values())

    def describe(self) -> dict[str, str | int]:
        """`form`, `precision` (the type that the matrix, or the scale, is stored in) and `bytes`, as plain data."""
        stored = self.mean if self.matrix is None else self.matrix
        return {"form": self.form, "precision": stored.dtype.name, "bytes": self.nbytes}

    def tensors(self) -> dict[str, ndarray]:
        """The tensors that are there, by their names after `affine.`."""
        found = {name: getattr(self, name) for name in NAMES}
        return {name: array for name, array in found.items() if array is not None}

    @cached_property
    def full(self) -> Float32[ndarray, "d d"]:
        """The matrix form in float32, whatever is stored: what `export` writes as a linear layer's weight."""
        if self.scale is not None:
            return np.diag(self.scale)
        assert self.matrix is not None
        return dequantise(self.tensors(), "matrix")

    def apply(self, z: Float32[ndarray, "n d"]) -> Float32[ndarray, "n d"]:
        """Map rows of embeddings."""
        centred = z - self.mean
        return centred * self.scale if self.scale is not None else centred @ self.full.T

    def apply_slowly(self, z: Float32[ndarray, "n d"]) -> Float32[ndarray, "n d"]:
        """What `apply` must agree with: entry by entry, in float64."""
        rows = []
        for row in z.astype(np.float64):
            centred = [float(value) - float(mean) for value, mean in zip(row, self.mean, strict=True)]
            rows.append([sum(float(w) * c for w, c in zip(weights, centred, strict=True)) for weights in self.full])
        return np.array(rows, np.float32).reshape(z.shape)


def affine_of(tensors: Mapping[str, ndarray]) -> Affine | None:
    """The map of a file's `affine.*` tensors, given by their names after `affine.`; None without any.

    Raises:
        InvalidMask: an unknown tensor, one that is missing, or as `Affine`.
    """
    if not tensors:
        return None
    if extra := sorted(set(tensors) - set(NAMES)):
        raise InvalidMask(f"affine.{extra[0]} is not a tensor of a map: there are {', '.join(NAMES)}")
    if "mean" not in tensors:
        raise InvalidMask("affine.mean is missing")
    return Affine(**{name: np.ascontiguousarray(array) for name, array in tensors.items()})


def in_precision(affine: Affine, precision: str) -> Affine:
    """The same map with its matrix stored in another type; the diagonal form has only one.

    Raises:
        InvalidArgument: an unknown precision, or values that float16 does not hold.
    """
    if precision not in PRECISIONS:
        raise InvalidArgument(f"unknown precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if affine.scale is not None:
        return affine
    with np.errstate(over="ignore"):
        stored = quantise("matrix", affine.full, precision)
    if not np.isfinite(stored["matrix"]).all():
        raise InvalidArgument("the map has values that float16 does not hold")
    return Affine(affine.mean, **stored)
