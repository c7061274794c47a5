"""Fit each kind of fusion on unlabelled training embeddings, one class a kind.

A new kind of smn_core/cascade/kinds/ that `--fusion` may name is a subclass of `Fitter` and a name in `FITTERS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray
from sklearn.decomposition import PCA

from smn_core.cascade.codes import pack
from smn_core.cascade.fusion import UNCONDITIONAL, Fusion
from smn_core.cascade.kinds import KINDS
from smn_core.cascade.kinds.pca import PackedPca, PcaInt3, PcaInt4
from smn_core.cascade.kinds.random_signs import draw_signs
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.matrices import PRECISIONS, dequantise, quantise
from training.cascade import feedback

VARIANCE_FLOOR = 1e-7
"""A direction with less than this part of the largest variance is rounding noise. Whitening would amplify it."""
EXACT_FEATURES = 4096
"""Up to this width PCA solves the whole covariance matrix; above it PCA is randomised."""
PACKED: dict[str, type[PackedPca]] = {kind.name.removeprefix("pca-"): kind for kind in (PcaInt3, PcaInt4)}
"""Precisions below int8, and the kinds that hold them."""


@dataclass(frozen=True)
class Fitter(ABC):
    """Fits one kind. The fields are those of `FusionChoice`, which has checked them."""

    kind: ClassVar[str]
    """As `--fusion` names it."""
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    has_components: ClassVar[bool] = True
    has_rank: ClassVar[bool] = False

    components: int | None
    precision: str
    rank: int | None
    seed: int

    @abstractmethod
    def fit(self, x: Mapping[str, Float32[ndarray, "n f"]], n_parts: int) -> Fusion:
        """A fusion with one set of tensors for every mode of `x`, the concatenated training embeddings.

        Raises:
            InvalidData: fewer images than components.
            InvalidArgument: more components or a larger rank than there are features.
        """


class ConcatFitter(Fitter):
    """Nothing to fit."""

    kind = "concat"
    has_components = False

    def fit(self, _x: Mapping[str, Float32[ndarray, "n f"]], _n_parts: int) -> Fusion:
        return Fusion(self.kind)


class WhiteningFitter(Fitter):
    """Fits a kind that projects x to q components and scales each to variance 1."""

    @property
    def stored(self) -> str:
        """The kind of fusion that is written."""
        return self.kind

    @abstractmethod
    def project(self, x: Float32[ndarray, "n f"], n_parts: int, n_components: int) -> dict[str, ndarray]:
        """The tensors of one mode, all but `scale`."""

    def fit(self, x: Mapping[str, Float32[ndarray, "n f"]], n_parts: int) -> Fusion:
        return self._fusion({mode: self._fit_mode(rows, n_parts) for mode, rows in x.items()})

    def _fit_mode(self, x: Float32[ndarray, "n f"], n_parts: int) -> dict[str, ndarray]:
        n, f = x.shape
        n_components = self.components or f // n_parts
        if n <= n_components:
            raise InvalidData(
                f"{n} images are too few for {n_components} components: take at most {n - 1}, as in --fusion "
                f"{self.kind}:{max(1, n - 1)}"
            )
        return self._add_scale(self.project(x, n_parts, n_components), x)

    def _add_scale(self, stored: dict[str, ndarray], x: Float32[ndarray, "n f"]) -> dict[str, ndarray]:
        """Add the scale that gives every component variance 1 on `x`, as the stored, rounded numbers project it."""
        ones = np.ones(len(stored["components"]), np.float32)
        bare = self._fusion({UNCONDITIONAL: {**stored, "scale": ones}})
        deviation = bare.apply(UNCONDITIONAL, x).std(0, ddof=1, dtype=np.float64)
        return {**stored, "scale": (1 / np.maximum(deviation, 1e-12)).astype(np.float32)}

    def _fusion(self, tensors: Mapping[str, Mapping[str, ndarray]]) -> Fusion:
        return Fusion(self.stored, tensors, self.seed if KINDS[self.stored].seeded else None)


class PcaFitter(WhiteningFitter):
    """Principal components of x. In 3 or 4 bits an entry their rounding errors are fed back (feedback.py)."""

    kind = "pca"
    precisions = (*PRECISIONS, *PACKED)

    @property
    def stored(self) -> str:
        return PACKED[self.precision].name if self.precision in PACKED else self.kind

    def project(self, x: Float32[ndarray, "n f"], _n_parts: int, n_components: int) -> dict[str, ndarray]:
        _require(f"{n_components} components of {x.shape[1]} features", n_components <= x.shape[1])
        mean, components = _find_components(x, n_components, self.seed)
        if self.precision not in PACKED:
            return {"mean": mean.astype(np.float32), **quantise("components", components, self.precision)}
        n_bits = PACKED[self.precision].n_bits
        found, scales = feedback.quantise(components, x.astype(np.float64) - mean, n_bits)
        return {"mean": mean.astype(np.float16), "components": pack(found, n_bits), "components_scale": scales}


class RandomFitter(WhiteningFitter):
    """Principal components of x after a projection by signs to `rank` features (None: a quarter of x's)."""

    kind = "random"
    has_rank = True

    def project(self, x: Float32[ndarray, "n f"], _n_parts: int, n_components: int) -> dict[str, ndarray]:
        f = x.shape[1]
        rank = self.rank or min(f, max(n_components, f // 4))
        _require(f"a projection to {rank} of {f} features", rank <= f)
        _require(f"{n_components} components of {rank} features", n_components <= rank)
        mean, components = _find_components(x @ draw_signs(self.seed, rank, f).T, n_components, self.seed)
        return {"mean": mean.astype(np.float32), **quantise("components", components, self.precision)}


class LowRankFitter(WhiteningFitter):
    """Whitened principal components through `rank` features of every mask (None: a quarter of a mask's).

    The rows of `parts[j]` are the combinations of the components' blocks that carry most of the output's variance.
    Then `components` are fitted again, by least squares, to what the stored parts let through.
    """

    kind = "low-rank"
    has_rank = True

    def project(self, x: Float32[ndarray, "n f"], n_parts: int, n_components: int) -> dict[str, ndarray]:
        d = x.shape[1] // n_parts
        rank = self.rank or max(1, d // 4)
        _require(f"a rank of {rank} of {d} features", rank <= min(d, n_components))
        mean, components = _find_components(x, n_components, self.seed)
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
        stored = {"mean": mean.astype(np.float32), **quantise("parts", np.stack(rows), self.precision)}
        parts = dequantise(stored, "parts").astype(np.float64)
        y = np.concatenate([centred[:, j * d : (j + 1) * d] @ parts[j].T for j in range(n_parts)], axis=1)
        fitted = np.linalg.lstsq(y, target, rcond=1e-10)[0].T
        return {**stored, **quantise("components", fitted, self.precision)}


FITTERS: dict[str, type[Fitter]] = {
    fitter.kind: fitter for fitter in (ConcatFitter, PcaFitter, RandomFitter, LowRankFitter)
}
"""In the order in which messages list them."""


def _require(what: str, holds: bool) -> None:
    if not holds:
        raise InvalidArgument(f"{what}: there are not so many")


def _find_components(
    x: Float32[ndarray, "n f"], n_components: int, seed: int
) -> tuple[Float64[ndarray, "f"], Float64[ndarray, "q f"]]:
    """Mean and principal components. q is below `n_components` where the other directions are rounding noise."""
    solver = "covariance_eigh" if x.shape[1] <= EXACT_FEATURES else "randomized"
    pca = PCA(n_components, svd_solver=solver, random_state=seed).fit(x.astype(np.float64))
    kept = pca.explained_variance_ > VARIANCE_FLOOR * pca.explained_variance_[0]
    if not kept.any():
        raise InvalidData("the embeddings of all images are the same: there is nothing to fit")
    return pca.mean_, pca.components_[kept]
