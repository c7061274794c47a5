"""A cascade: a root mask, its experts, a router and a fusion. `embed` runs it: route, embed, fuse.

unconditional   z = fuse(concat(root, expert 1, ..., expert k))
conditional     z = fuse(concat(root, 0, ..., expert j, ..., 0)), where the router picks j for each image
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from smn_core.cascade.fusion import CONDITIONAL, MODES, UNCONDITIONAL, Fusion
from smn_core.cascade.router import Router, route
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument, InvalidCascade
from smn_core.mask import Head

MAX_EXPERTS = 64


@dataclass(frozen=True, eq=False)
class Cascade:
    """What an smn-cascade/1 file holds. Immutable.

    `root` and `experts` are digests of masks; the experts are in the router's order. `mode` is the default mode.
    `heads` are linear classifiers of the fused embeddings, by mode, all with the same classes. `metadata` are the other
    texts of the file. `digest` is the file's, or None before it is written.

    Raises:
        InvalidCascade: two parts do not fit each other; the message says which.
    """

    fingerprint: str
    root: str
    experts: tuple[str, ...]
    fusion: Fusion
    mode: str = UNCONDITIONAL
    router: Router | None = None
    heads: Mapping[str, Head] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    digest: str | None = None

    def __post_init__(self) -> None:
        if len(self.experts) > MAX_EXPERTS:
            raise InvalidCascade(f"{len(self.experts)} experts, at most {MAX_EXPERTS}")
        if self.router is not None and self.router.n_experts != len(self.experts):
            raise InvalidCascade(
                f"the router chooses among {self.router.n_experts} experts, the cascade has {len(self.experts)}"
            )
        if self.router is None and CONDITIONAL in self.fusion.tensors:
            raise InvalidCascade("a conditional fusion without a router")
        if self.mode not in self.modes:
            raise InvalidCascade(f"the default mode {self.mode!r} is not there: {', '.join(self.modes)}")
        self.fusion.require_fits(self.n_parts, self.n_features)
        self._check_heads()
        if self.n_features is not None:
            self.require_heads_fit(self.n_features)

    def require_heads_fit(self, n_features: int) -> None:
        """Raise InvalidCascade unless every head takes the fused embeddings of a backbone with `n_features`."""
        for mode, head in self.heads.items():
            width = self.width(mode, n_features)
            if head.weight.shape[1] != width:
                raise InvalidCascade(
                    f"head.{mode}.weight takes {head.weight.shape[1]} components, the {mode} embedding has {width}"
                )

    def _check_heads(self) -> None:
        if absent := sorted(set(self.heads) - set(self.modes)):
            raise InvalidCascade(f"head.{absent[0]}: the cascade has no {absent[0]} mode")
        if len({head.classes for head in self.heads.values()}) > 1:
            raise InvalidCascade("the heads of two modes have different classes")
        for mode, head in self.heads.items():
            if not len(head.weight) == len(head.bias) == len(head.classes):
                raise InvalidCascade(f"head.{mode} has {len(head.weight)} rows for {len(head.classes)} classes")
            if not (np.isfinite(head.weight).all() and np.isfinite(head.bias).all()):
                raise InvalidCascade(f"head.{mode} has a value that is not finite")

    @property
    def masks(self) -> tuple[str, ...]:
        """Digests of root and experts."""
        return (self.root, *self.experts)

    @property
    def n_parts(self) -> int:
        return 1 + len(self.experts)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that it can run in. The fusion must have the mode, and the conditional mode needs a router."""
        return tuple(m for m in MODES if self.fusion.has(m) and (m == UNCONDITIONAL or self.router is not None))

    @property
    def n_features(self) -> int | None:
        """Features of one mask, or None where no tensor tells."""
        if self.router is not None:
            return self.router.n_features
        return self.fusion.n_inputs // self.n_parts if self.fusion.n_inputs is not None else None

    def resident_bytes(self, n_features: int) -> int:
        """Bytes that router, fusion, heads and texts take in memory, of a backbone with `n_features`."""
        texts = sum(len(key) + len(value) for key, value in self.metadata.items())
        texts += sum(head.nbytes for head in self.heads.values())
        router = self.router.nbytes if self.router is not None else 0
        return router + self.fusion.resident_bytes(self.n_parts * n_features) + texts

    def width(self, mode: str, n_features: int) -> int:
        """Components of a fused embedding of a backbone with `n_features`."""
        return self.fusion.width(mode, self.n_parts, n_features)

    def choose_mode(self, wanted: str | None) -> str:
        """The mode asked for, or the default.

        Raises:
            InvalidArgument: the cascade does not have it.
        """
        mode = wanted or self.mode
        if mode not in self.modes:
            raise InvalidArgument(f"the cascade has no {mode} mode; it has {', '.join(self.modes)}")
        return mode

    def choose_dimensions(self, wanted: int | None, mode: str, n_features: int) -> int:
        """How many components to keep.

        Raises:
            InvalidArgument: more than there are, or none.
        """
        width = self.width(mode, n_features)
        if wanted is not None and not 1 <= wanted <= width:
            raise InvalidArgument(f"dimensions {wanted}: the {mode} embedding of this cascade has {width}")
        return wanted or width


def concatenate_all(parts: Sequence[Float32[ndarray, "n d"]]) -> Float32[ndarray, "n f"]:
    """The unconditional x: root and all experts side by side."""
    return np.concatenate(parts, axis=1)


def concatenate_picked(
    root: Float32[ndarray, "n d"], expert: Float32[ndarray, "n d"], chosen: Int64[ndarray, "n"], n_experts: int
) -> Float32[ndarray, "n f"]:
    """The conditional x: as `concatenate_all`, with zeros in place of the experts that were not picked.

    `expert` are the embeddings through the picked expert of each row; `chosen` are these experts, from 0.
    """
    n, d = root.shape
    x = np.zeros((n, 1 + n_experts, d), np.float32)
    x[:, 0] = root
    x[np.arange(n), 1 + chosen] = expert
    return x.reshape(n, -1)


def fuse(cascade: Cascade, mode: str, x: Float32[ndarray, "n f"]) -> Float32[ndarray, "n q"]:
    """Fused embeddings of rows that `concatenate_all` or `concatenate_picked` made."""
    return cascade.fusion.apply(mode, x)


def fuse_slowly(
    cascade: Cascade, mode: str, parts: Sequence[Float32[ndarray, "n d"]], chosen: Int64[ndarray, "n"] | None = None
) -> Float32[ndarray, "n q"]:
    """What `fuse` must agree with: the formulas of docs/formats.md row by row in float64, from the stored tensors.

    `parts` are the embeddings of root and every expert. `chosen` are the picked experts from 0, in conditional mode.
    """
    rows = []
    for i in range(len(parts[0])):
        kept = [j == 0 or chosen is None or j == 1 + chosen[i] for j in range(len(parts))]
        rows.append([part[i].astype(np.float64) * keep for part, keep in zip(parts, kept, strict=True)])
    return cascade.fusion.apply_slowly(mode, np.stack([np.concatenate(row) for row in rows]))


@dataclass(frozen=True, eq=False)
class Fused:
    """Fused embeddings, and in conditional mode the picked expert of every row, from 0."""

    embeddings: Float32[ndarray, "n q"]
    chosen: Int64[ndarray, "n"] | None


def embed(engine: Engine, cascade: Cascade, mode: str, x: Float32[Tensor, "n 3 h w"]) -> Fused:
    """Run images through a cascade, mask by mask. The engine must have prepared the masks.

    Raises:
        NotReady: a mask is not prepared.
        InvalidArgument: conditional mode without a router.
    """
    n = x.shape[0]

    def through(digest: str, rows: Float32[Tensor, "r 3 h w"]) -> ndarray:
        return engine.embed(rows, [Segment(digest, 0, len(rows))]).embeddings.numpy()

    root = through(cascade.root, x)
    if mode == UNCONDITIONAL:
        parts = [root, *(through(digest, x) for digest in cascade.experts)]
        return Fused(fuse(cascade, mode, concatenate_all(parts)), None)
    if cascade.router is None:
        raise InvalidArgument("the cascade has no router")
    chosen = route(cascade.router, root)
    expert = np.empty_like(root)
    for j in np.unique(chosen):
        rows = np.flatnonzero(chosen == j)
        expert[rows] = through(cascade.experts[j], x[torch.from_numpy(rows)] if len(rows) < n else x)
    return Fused(fuse(cascade, mode, concatenate_picked(root, expert, chosen, len(cascade.experts))), chosen)
