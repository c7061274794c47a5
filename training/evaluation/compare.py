"""Compare a cascade with the controls that show whether it helps: root alone, root whitened, no PCA, other fusions.

The images are embedded once through each mask. Every row counts the bytes that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy import ndarray

from smn_core.cascade import file as cascadefile
from smn_core.cascade.cascade import Cascade, fuse
from smn_core.cascade.file import CascadeFolder
from smn_core.cascade.fusion import CONDITIONAL, UNCONDITIONAL, Fusion
from smn_core.cascade.router import route
from smn_core.engine import Engine
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from training.cascade.fusion import FusionChoice, fit, inputs
from training.features import Features

Embed = Callable[[str | None, ImageSet], Features]
Compared = tuple[dict[str, Any], Features, Features | None]
"""A row that lacks its scores, and the embeddings of the train and the test split that give them."""


@dataclass(frozen=True)
class _Parts:
    """Embeddings of one split through root and experts, and the expert that the router picks for every image."""

    each: list[Features]
    routed: ndarray | None

    @property
    def z(self) -> list[ndarray]:
        return [features.z for features in self.each]

    def with_z(self, z: ndarray) -> Features:
        return replace(self.each[0], z=z)


def compare(
    engine: Engine,
    name: str,
    found: CascadeFolder,
    fusions: Sequence[FusionChoice],
    embed: Embed,
    train: ImageSet,
    test: ImageSet | None,
) -> Iterator[Compared]:
    """Yield the rows of a cascade and its controls.

    Raises:
        WrongBackbone, InvalidCascade: it does not fit the engine's backbone.
        InvalidData: too few images for a fusion.
    """
    cascade, masks = found.cascade, found.masks(engine.backbone.layout)
    cascadefile.check_fits(cascade, engine.backbone)
    banks, tests = _embed_all(engine, cascade, masks, embed, train, test)
    n_most = len(banks.z[0]) - 1
    full = FusionChoice("pca", min(engine.backbone.n_features, n_most), "float32")

    def row(label: str, used: Cascade, mode: str) -> Compared:
        n_parts = used.n_parts
        facts = {"name": f"{name}: {label}", "digest": used.digest, "bytes": _bytes(used, mode, found, masks)}

        def fused(parts: _Parts) -> Features:
            return parts.with_z(fuse(used, mode, inputs(parts.z[:n_parts], parts.routed, [mode])[mode]))

        return facts, fused(banks), fused(tests) if tests is not None else None

    alone = replace(cascade, experts=(), router=None, fusion=Fusion("concat"), mode=UNCONDITIONAL, digest=None)
    facts, bank, tested = row("root", alone, UNCONDITIONAL)
    # Of the root alone no cascade file is needed.
    facts |= {"digest": cascade.root, "bytes": _total(masks=found.files[0].stat().st_size, state=_state(masks[:1]))}
    yield facts, bank, tested
    whitened = replace(alone, fusion=fit(full, inputs(banks.z[:1], None, [UNCONDITIONAL]), 1))
    yield row("root, whitened", whitened, UNCONDITIONAL)
    if not cascade.experts:
        return
    bare = replace(cascade, fusion=Fusion("concat"), router=None, mode=UNCONDITIONAL, digest=None)
    yield row("concatenated", bare, UNCONDITIONAL)
    modes = [UNCONDITIONAL, *([CONDITIONAL] if cascade.router is not None else [])]
    for mode in cascade.modes:
        yield row(f"{mode} as stored ({cascade.fusion.kind})", cascade, mode)
    for choice in (full, *fusions):
        fitted = fit(choice, inputs(banks.z, banks.routed, modes), cascade.n_parts)
        for mode in modes:
            yield row(f"{mode} {choice.name}", replace(cascade, fusion=fitted, mode=UNCONDITIONAL, digest=None), mode)


def _embed_all(
    engine: Engine,
    cascade: Cascade,
    masks: Sequence[TaskMask],
    embed: Embed,
    train: ImageSet,
    test: ImageSet | None,
) -> tuple[_Parts, _Parts | None]:
    banks: list[Features] = []
    tests: list[Features] = []
    for mask in masks:
        engine.prepare(mask)
        banks.append(embed(mask.digest, train))
        if test is not None:
            tests.append(embed(mask.digest, test))
        engine.release(str(mask.digest))
    return _parts(cascade, banks), _parts(cascade, tests) if tests else None


def _parts(cascade: Cascade, each: list[Features]) -> _Parts:
    return _Parts(each, route(cascade.router, each[0].z) if cascade.router is not None else None)


def _bytes(used: Cascade, mode: str, found: CascadeFolder, masks: Sequence[TaskMask]) -> dict[str, int]:
    """Count the bytes that embedding in this mode needs: masks, state, router, fusion. The total has headers too."""
    n_parts = used.n_parts
    tensors = {m: t for m, t in used.fusion.tensors.items() if m == mode}
    router = used.router if mode == CONDITIONAL else None
    only = replace(used, fusion=replace(used.fusion, tensors=tensors), mode=mode, router=router)
    files = {file: file.stat().st_size for file in found.files[:n_parts]}
    return _total(
        masks=sum(files.values()),
        state=_state(masks[:n_parts]),
        router=router.nbytes if router is not None else 0,
        fusion=only.fusion.nbytes,
        cascade_file=len(cascadefile.serialise_cascade(only)),
    )


def _state(masks: Sequence[TaskMask]) -> int:
    return int(np.sum([values.nbytes for mask in masks for values in mask.state.values()], dtype=np.int64))


def _total(masks: int, state: int, router: int = 0, fusion: int = 0, cascade_file: int = 0) -> dict[str, int]:
    """Put the parts together. `masks` are whole files, with their state; `cascade_file` holds router and fusion."""
    parts = {"masks": masks - state, "state": state, "router": router, "fusion": fusion}
    return parts | {"total": masks + cascade_file}
