"""The fusion of a cascade: the embeddings of root and experts, side by side -> one embedding.

With m = k + 1 masks of d features, `x [n, m*d] = concat(root, expert 1..k)` and `z [n, q] = kind(x)`. The formulas are
in `kinds/`, one class each: `concat`, `pca`, `pca-int3`, `pca-int4`, `random`, `low-rank`. Each mode has tensors of its
own. docs/formats.md has them in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from smn_core.cascade.kinds import KINDS
from smn_core.cascade.kinds.base import Kind
from smn_core.errors import InvalidArgument, InvalidCascade

UNCONDITIONAL, CONDITIONAL = "unconditional", "conditional"
MODES = (UNCONDITIONAL, CONDITIONAL)


@dataclass(frozen=True, eq=False)
class Fusion:
    """The name of a kind, its tensors by mode, and for a seeded kind the seed. Immutable.

    Raises:
        InvalidCascade: an unknown kind or mode, a missing or extra tensor, a wrong type, a value that is not finite, or
            shapes that do not fit each other.
    """

    kind: str
    tensors: Mapping[str, Mapping[str, ndarray]] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidCascade(f"unknown fusion {self.kind!r}: there are {', '.join(KINDS)}")
        if (self.seed is not None) != self._formula.seeded:
            seeded = " and ".join(name for name, kind in KINDS.items() if kind.seeded)
            raise InvalidCascade(f"a seed belongs to the fusion {seeded}, and to no other")
        if bool(self.tensors) != self._has_tensors:
            raise InvalidCascade(f"the fusion {self.kind} has {'tensors' if self.tensors else 'no tensors'}")
        for mode, tensors in self.tensors.items():
            if mode not in MODES:
                raise InvalidCascade(f"unknown mode {mode!r}: there are {' and '.join(MODES)}")
            self._formula.check(mode, tensors)

    def has(self, mode: str) -> bool:
        """Whether it fuses in this mode."""
        return mode in MODES and (mode in self.tensors or not self._has_tensors)

    def width(self, mode: str, n_parts: int, n_features: int) -> int:
        """Components of a fused embedding."""
        return self._formula.width(self.tensors.get(mode, {}), n_parts * n_features)

    @property
    def n_inputs(self) -> int | None:
        """Width of x where the tensors say it."""
        found = [self._formula.measure(mode, tensors).get("f") for mode, tensors in self.tensors.items()]
        return found[0] if found else None

    def require_fits(self, n_parts: int, n_features: int | None) -> None:
        """Raise InvalidCascade unless every mode takes embeddings of `n_parts` masks, each `n_features` wide."""
        for mode, tensors in self.tensors.items():
            self._formula.check_fits(mode, tensors, n_parts, n_features)

    def apply(self, mode: str, x: Float32[ndarray, "n f"]) -> Float32[ndarray, "n q"]:
        """Fuse rows of concatenated embeddings.

        Raises:
            InvalidArgument: the fusion does not have the mode.
        """
        self._require(mode)
        return self._formula.apply(x, self.tensors.get(mode, {}))

    def apply_slowly(self, mode: str, x: Float64[ndarray, "n f"]) -> Float32[ndarray, "n q"]:
        """What `apply` must agree with: row by row in float64.

        Raises:
            InvalidArgument: the fusion does not have the mode.
        """
        self._require(mode)
        full = self._formula.dequantise(self.tensors[mode]) if self._has_tensors else {}
        tensors = {name: array.astype(np.float64) for name, array in full.items()}
        return np.stack([self._formula.apply_slowly(row, tensors) for row in x]).astype(np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as they are stored."""
        return sum(array.nbytes for tensors in self.tensors.values() for array in tensors.values())

    def resident_bytes(self, n_inputs: int) -> int:
        """Bytes that it takes in memory for as long as it is kept, used or not."""
        drawn = {len(t.get("mean", ())): self._formula.drawn_bytes(t, n_inputs) for t in self.tensors.values()}
        return self.nbytes + sum(drawn.values())

    @cached_property
    def _formula(self) -> Kind:
        return KINDS[self.kind](self.seed)

    @property
    def _has_tensors(self) -> bool:
        return bool(self._formula.shapes)

    def _require(self, mode: str) -> None:
        if not self.has(mode):
            raise InvalidArgument(f"the cascade has no {mode} mode; it has {', '.join(self.tensors)}")
