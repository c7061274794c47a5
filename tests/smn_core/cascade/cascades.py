"""Random cascades of a width, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from smn_core.cascade.cascade import Cascade
from smn_core.cascade.codes import pack
from smn_core.cascade.fusion import Fusion
from smn_core.cascade.kinds import KINDS
from smn_core.cascade.kinds.pca import PackedPca
from smn_core.cascade.router import Router
from smn_core.matrices import quantise

D, K, Q, P, S, R = 12, 3, 5, 7, 2, 4


def digest(i: int) -> str:
    return f"sha256:{i:064x}"


def build_router(rng: np.random.Generator, d: int = D, k: int = K, r: int = R) -> Router:
    weights = rng.random(k).astype(np.float32) + 0.1
    upper = np.triu(rng.standard_normal((k, r, r))) * 0.3
    upper[:, np.arange(r), np.arange(r)] = rng.random((k, r)) + 0.5
    return Router(
        mean=(rng.standard_normal(d) * 0.1).astype(np.float32),
        components=rng.standard_normal((r, d)).astype(np.float32),
        scale=(rng.random(r) + 0.5).astype(np.float32),
        weights=weights / weights.sum(),
        means=rng.standard_normal((k, r)).astype(np.float32),
        precisions_cholesky=upper.astype(np.float32),
    )


def build_tensors(kind: str, rng: np.random.Generator, precision: str = "float32", d: int = D, k: int = K) -> Any:
    m, f = 1 + k, (1 + k) * d

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    scale = {"scale": (rng.random(Q) + 0.5).astype(np.float32)}
    if kind == "pca":
        return {"mean": normal(f), **quantise("components", normal(Q, f), precision), **scale}
    if issubclass(KINDS[kind], PackedPca):
        n_bits = KINDS[kind].n_bits
        found = rng.integers(0, 2**n_bits, (Q, f), dtype=np.uint8)
        components = {"components": pack(found, n_bits), "components_scale": np.abs(normal(Q))}
        return {"mean": normal(f).astype(np.float16), **components, **scale}
    if kind == "random":
        return {"mean": normal(P), **quantise("components", normal(Q, P), precision), **scale}
    parts = quantise("parts", normal(m, S, d), precision)
    return {"mean": normal(f), **parts, **quantise("components", normal(Q, m * S), precision), **scale}


def build_fusion(kind: str, rng: np.random.Generator, precision: str = "float32", d: int = D, k: int = K) -> Fusion:
    modes = ("unconditional", "conditional") if KINDS[kind].shapes else ()
    tensors = {mode: build_tensors(kind, rng, precision, d, k) for mode in modes}
    return Fusion(kind, tensors, 11 if KINDS[kind].seeded else None)


def build_cascade(kind: str = "pca", precision: str = "float32", seed: int = 0, **changes: Any) -> Cascade:
    rng = np.random.default_rng(seed)
    given = {
        "fingerprint": "ab" * 32,
        "root": digest(0),
        "experts": tuple(digest(i) for i in range(1, K + 1)),
        "fusion": build_fusion(kind, rng, precision),
        "router": build_router(rng),
        **changes,
    }
    return Cascade(**given)


def embeddings(n: int = 20, m: int = K + 1, d: int = D, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, d)).astype(np.float32) for _ in range(m)]
