"""Fit fusions on unlabelled training embeddings: the paper's PCA whitening, and cheaper ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from sklearn.decomposition import PCA

from smn_core.cascade.cascade import picked, side_by_side
from smn_core.cascade.codes import pack
from smn_core.cascade.fusion import (
    CONDITIONAL,
    PACKED,
    PRECISIONS,
    SHAPES,
    UNCONDITIONAL,
    Fusion,
    dequantised,
    quantise,
    signs,
)
from smn_core.errors import InvalidArgument, InvalidData
from training.cascade import feedback

# A direction of less variance than this part of the largest one is rounding: whitening it would amplify noise.
VARIANCE_FLOOR = 1e-7
EXACT_FEATURES = 4096
FEW_BITS = {kind.removeprefix("pca-"): kind for kind in PACKED}
"""Precisions below int8, and the kinds that hold them."""
FITTED = tuple(kind for kind in SHAPES if kind not in PACKED)


@dataclass(frozen=True)
class FusionPlan:
    """Which fusion to fit. `components` None: as many as one mask has features. `rank` None: a quarter.

    `rank` is, for `low-rank`, the features kept of every mask, and for `random` the width of the projection.
    """

    kind: str = "pca"
    components: int | None = None
    precision: str = "int8"
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in FITTED:
            raise InvalidArgument(f"unknown fusion {self.kind!r}: choose {', '.join(FITTED)}")
        if self.precision not in (*PRECISIONS, *FEW_BITS):
            known = ", ".join((*PRECISIONS, *FEW_BITS))
            raise InvalidArgument(f"unknown precision {self.precision!r}: choose {known}")
        if self.precision in FEW_BITS and self.kind != "pca":
            raise InvalidArgument(f"the fusion {self.kind} has no precision {self.precision}: only pca has")
        for name, value in (("components", self.components), ("rank", self.rank)):
            if value is not None and value < 1:
                raise InvalidArgument(f"{name} is {value}: at least 1")
        if self.rank is not None and self.kind not in ("random", "low-rank"):
            raise InvalidArgument(f"the fusion {self.kind} has no rank")

    @property
    def stored(self) -> str:
        """The kind of fusion that is written."""
        return FEW_BITS.get(self.precision, self.kind)

    @property
    def name(self) -> str:
        """As `parse_plan` reads it."""
        if self.kind == "concat":
            return self.kind
        parts = [self.kind, str(self.components or ""), self.precision, str(self.rank or "")]
        return ":".join(parts).rstrip(":")


def parse_plan(text: str, seed: int = 0) -> FusionPlan:
    """`KIND[:COMPONENTS[:PRECISION[:RANK]]]`, for instance `pca:64:int8` or `low-rank::int8:32`.

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
    return FusionPlan(kind, numbers[0], precision or FusionPlan.precision, numbers[1], seed)


def inputs(parts: Sequence[ndarray], clusters: ndarray | None, modes: Sequence[str]) -> dict[str, ndarray]:
    """The concatenated training embeddings of every mode; `clusters` are the picked experts, from 0."""
    x: dict[str, ndarray] = {}
    if UNCONDITIONAL in modes:
        x[UNCONDITIONAL] = side_by_side(parts)
    if CONDITIONAL in modes:
        assert clusters is not None
        expert = np.stack(parts[1:])[clusters, np.arange(len(clusters))]
        x[CONDITIONAL] = picked(parts[0], expert, clusters, len(parts) - 1)
    return x


def fit(plan: FusionPlan, x: Mapping[str, Float32[ndarray, "n f"]], n_parts: int) -> Fusion:
    """A fusion with one set of tensors for every mode of `x`, the concatenated training embeddings.

    Raises:
        InvalidData: fewer images than components.
        InvalidArgument: more components or a larger rank than there are features.
    """
    if plan.kind == "concat":
        return Fusion("concat")
    seed = plan.seed if plan.kind == "random" else None
    return Fusion(plan.stored, {mode: _fit(plan, rows, n_parts) for mode, rows in x.items()}, seed)


def _fit(plan: FusionPlan, x: Float32[ndarray, "n f"], n_parts: int) -> dict[str, ndarray]:
    n, f = x.shape
    n_components = plan.components or f // n_parts
    if n <= n_components:
        raise InvalidData(
            f"{n} images are too few for {n_components} components: take at most {n - 1}, as in --fusion "
            f"{plan.kind}:{max(1, n - 1)}"
        )
    if plan.kind == "random":
        rank = plan.rank or min(f, max(n_components, f // 4))
        _require(f"a projection to {rank} of {f} features", rank <= f)
        _require(f"{n_components} components of {rank} features", n_components <= rank)
        y = x @ signs(plan.seed, rank, f).T
        mean, components = _principal(y, n_components, plan.seed)
        stored = {"mean": mean.astype(np.float32), **quantise("components", components, plan.precision)}
    elif plan.kind == "low-rank":
        stored = _low_rank(plan, x, n_parts, n_components)
    else:
        _require(f"{n_components} components of {f} features", n_components <= f)
        mean, components = _principal(x, n_components, plan.seed)
        if plan.precision in FEW_BITS:
            stored = _few_bits(plan, mean, components, x)
        else:
            stored = {"mean": mean.astype(np.float32), **quantise("components", components, plan.precision)}
    return _whitened(plan, stored, x)


def _few_bits(plan: FusionPlan, mean: ndarray, components: ndarray, x: Float32[ndarray, "n f"]) -> dict[str, ndarray]:
    n_bits = PACKED[plan.stored]
    found, scales = feedback.quantise(components, x.astype(np.float64) - mean, n_bits)
    return {"mean": mean.astype(np.float16), "components": pack(found, n_bits), "components_scale": scales}


def _require(what: str, holds: bool) -> None:
    if not holds:
        raise InvalidArgument(f"{what}: there are not so many")


def _principal(x: ndarray, n_components: int, seed: int) -> tuple[ndarray, ndarray]:
    """Mean [f] and principal components [q,f], float64; q is smaller where the rest has no variance to speak of."""
    solver = "covariance_eigh" if x.shape[1] <= EXACT_FEATURES else "randomized"
    pca = PCA(n_components, svd_solver=solver, random_state=seed).fit(x.astype(np.float64))
    kept = pca.explained_variance_ > VARIANCE_FLOOR * pca.explained_variance_[0]
    if not kept.any():
        raise InvalidData("the embeddings of all images are the same: there is nothing to fit")
    return pca.mean_, pca.components_[kept]


def _low_rank(plan: FusionPlan, x: Float32[ndarray, "n f"], n_parts: int, n_components: int) -> dict[str, ndarray]:
    """Whitened principal components through `rank` features of every part.

    The rows of `parts[j]` are the combinations of the components' blocks that carry most of the output's variance;
    `components` are then refitted by least squares on what the stored parts let through.
    """
    f = x.shape[1]
    d = f // n_parts
    rank = plan.rank or max(1, d // 4)
    _require(f"a rank of {rank} of {d} features", rank <= min(d, n_components))
    mean, components = _principal(x, n_components, plan.seed)
    centred = x.astype(np.float64) - mean
    target = centred @ components.T
    scale = 1 / target.std(0, ddof=1)
    target *= scale
    rows = []
    for j in range(n_parts):
        block = (components[:, j * d : (j + 1) * d].T * scale).T
        through = centred[:, j * d : (j + 1) * d] @ block.T
        _, vectors = np.linalg.eigh(through.T @ through)
        rows.append(vectors[:, ::-1][:, :rank].T @ block)
    stored = {"mean": mean.astype(np.float32), **quantise("parts", np.stack(rows), plan.precision)}
    parts = dequantised("low-rank", stored, "parts").astype(np.float64)
    y = np.concatenate([centred[:, j * d : (j + 1) * d] @ parts[j].T for j in range(n_parts)], axis=1)
    fitted = np.linalg.lstsq(y, target, rcond=1e-10)[0].T
    return {**stored, **quantise("components", fitted, plan.precision)}


def _whitened(plan: FusionPlan, stored: dict[str, ndarray], x: Float32[ndarray, "n f"]) -> dict[str, ndarray]:
    """With the scale that gives every component variance 1 on the training set, as the stored numbers project it."""
    ones = np.ones(len(stored["components"]), np.float32)
    seed = plan.seed if plan.kind == "random" else None
    bare = Fusion(plan.stored, {UNCONDITIONAL: {**stored, "scale": ones}}, seed)
    deviation = bare.apply(UNCONDITIONAL, x).std(0, ddof=1, dtype=np.float64)
    return {**stored, "scale": (1 / np.maximum(deviation, 1e-12)).astype(np.float32)}
