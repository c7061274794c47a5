"""Choose a fusion and fit it on unlabelled training embeddings. How each kind is fitted: fitters.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.cascade.cascade import concatenate_all, concatenate_picked
from smn_core.cascade.fusion import CONDITIONAL, UNCONDITIONAL, Fusion
from smn_core.errors import InvalidArgument
from training.cascade.fitters import FITTERS


@dataclass(frozen=True)
class FusionChoice:
    """Which fusion to fit.

    `components` None means as many as one mask has features. `rank` None means a quarter of the features that it cuts:
    for `low-rank` it is the features kept of every mask, for `random` the width of the projection.

    Raises:
        InvalidArgument: an unknown kind or precision, or a number that the kind does not take.
    """

    kind: str = "pca"
    components: int | None = None
    precision: str = "int8"
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in FITTERS:
            raise InvalidArgument(f"unknown fusion {self.kind!r}: choose {', '.join(FITTERS)}")
        known = dict.fromkeys(precision for fitter in FITTERS.values() for precision in fitter.precisions)
        if self.precision not in known:
            raise InvalidArgument(f"unknown precision {self.precision!r}: choose {', '.join(known)}")
        if self.precision not in FITTERS[self.kind].precisions:
            having = " and ".join(kind for kind, fitter in FITTERS.items() if self.precision in fitter.precisions)
            raise InvalidArgument(f"the fusion {self.kind} has no precision {self.precision}: only {having} has")
        for name, value in (("components", self.components), ("rank", self.rank)):
            if value is not None and value < 1:
                raise InvalidArgument(f"{name} is {value}: at least 1")
        if self.rank is not None and not FITTERS[self.kind].has_rank:
            raise InvalidArgument(f"the fusion {self.kind} has no rank")

    @property
    def has_components(self) -> bool:
        """Whether it is fitted to a number of components, which takes more images than that."""
        return FITTERS[self.kind].has_components

    @property
    def name(self) -> str:
        """As `parse_fusion` reads it."""
        if not self.has_components:
            return self.kind
        parts = [self.kind, str(self.components or ""), self.precision, str(self.rank or "")]
        return ":".join(parts).rstrip(":")


def parse_fusion(text: str, seed: int = 0) -> FusionChoice:
    """Read `KIND[:COMPONENTS[:PRECISION[:RANK]]]`, for instance `pca:64:int8` or `low-rank::int8:32`.

    Raises:
        InvalidArgument: it does not read so.
    """
    kind, *rest = text.split(":")
    if len(rest) > 3:
        raise InvalidArgument(f"--fusion {text!r}: write KIND:COMPONENTS:PRECISION:RANK")
    components, precision, rank = (*rest, "", "", "")[:3]
    try:
        numbers = [int(part) if part else None for part in (components, rank)]
    except ValueError as error:
        raise InvalidArgument(f"--fusion {text!r}: components and rank are whole numbers") from error
    return FusionChoice(kind, numbers[0], precision or FusionChoice.precision, numbers[1], seed)


def inputs(parts: Sequence[ndarray], clusters: ndarray | None, modes: Sequence[str]) -> dict[str, ndarray]:
    """The concatenated training embeddings of every mode; `clusters` are the picked experts, from 0."""
    x: dict[str, ndarray] = {}
    if UNCONDITIONAL in modes:
        x[UNCONDITIONAL] = concatenate_all(parts)
    if CONDITIONAL in modes:
        assert clusters is not None
        expert = np.stack(parts[1:])[clusters, np.arange(len(clusters))]
        x[CONDITIONAL] = concatenate_picked(parts[0], expert, clusters, len(parts) - 1)
    return x


def fit(choice: FusionChoice, x: Mapping[str, Float32[ndarray, "n f"]], n_parts: int) -> Fusion:
    """A fusion with one set of tensors for every mode of `x`, the concatenated training embeddings.

    Raises:
        InvalidData: fewer images than components.
        InvalidArgument: more components or a larger rank than there are features.
    """
    return FITTERS[choice.kind](choice.components, choice.precision, choice.rank, choice.seed).fit(x, n_parts)
