"""Embeddings of a split through one mask, made once: a folder keeps them for the next step or verb that wants them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from smn_core.engine import Engine
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.files import replacing
from smn_core.images import draft_side_px
from smn_core.imageset import ImageSet
from smn_core.tensorfile import canonical_json
from smn_core.verbs.offline import Progress, batches, embed_batches, loader, silent, through
from training.data import Subset, identity, seeded
from training.supervised import transform_for

VIEW_IMAGES = 500
VIEW_SCALE = (0.4, 1.0)
VIEW_SEEDS = 1_000_003
DECODE_THREADS = 2
EMBEDDINGS = "embeddings"
"""The folder of a cascade that keeps them."""


@dataclass(frozen=True)
class Features:
    """Embeddings of one split through one mask. Unreadable images have no row; `kept` are the indices of the others."""

    z: Float32[ndarray, "n d"]
    labels: Int64[ndarray, "n"] | None
    kept: Int64[ndarray, "n"]
    skipped: tuple[str, ...]


def embed(
    engine: Engine, digest: str | None, images: ImageSet, batch_size: int, progress: Progress = silent
) -> Features:
    """Embeddings of every readable image, in order.

    Raises:
        InvalidData: none can be read.
    """
    skipped: list[str] = []
    inputs = batches(len(images.names), loader(images, engine), batch_size, DECODE_THREADS, skipped)
    return _collect(engine, digest, images, inputs, skipped, progress)


def embed_view(
    engine: Engine, digest: str | None, images: ImageSet, seed: int, batch_size: int
) -> Float32[ndarray, "n d"]:
    """Embeddings of one random crop of up to `VIEW_IMAGES` images; crops depend on (seed, image) alone."""
    preprocess = dict(engine.backbone.preprocess)
    transform, draft_px = transform_for(VIEW_SCALE, preprocess), draft_side_px(preprocess)
    picked = np.random.default_rng(0).permutation(len(images.names))[:VIEW_IMAGES]
    subset = Subset(images, np.sort(picked))

    def load(index: int) -> Tensor:
        image = subset.image(index, draft_px)
        with seeded(VIEW_SEEDS * (seed + 1) + index):
            return transform(image)

    skipped: list[str] = []
    # One thread: the crops draw from global generators.
    inputs = batches(len(subset.names), load, batch_size, 1, skipped)
    return _collect(engine, digest, subset, inputs, skipped, silent).z


def _collect(
    engine: Engine,
    digest: str | None,
    images: ImageSet,
    inputs: Iterator[tuple[list[int], Tensor]],
    skipped: list[str],
    progress: Progress,
) -> Features:
    kept: list[int] = []
    rows: list[ndarray] = []
    for indices, z in embed_batches(through(engine, digest), inputs):
        kept += indices
        rows.append(z.numpy())
        progress(len(indices))
    if not rows:
        raise InvalidData(f"none of the {len(images.names)} images can be read; the first: {skipped[0]}")
    return _features(np.concatenate(rows), images, np.array(kept, np.int64), tuple(skipped))


def _features(z: ndarray, images: ImageSet, kept: ndarray, skipped: tuple[str, ...]) -> Features:
    return Features(z, images.labels[kept] if images.labels is not None else None, kept, skipped)


class Cache:
    """Embeddings on disk, by backbone, mask, pixels and the images themselves.

    Args:
        folders: looked through in this order; the first takes what is new. None: nothing is kept.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._folders = folders

    def embed(
        self, engine: Engine, digest: str | None, images: ImageSet, batch_size: int, progress: Progress = silent
    ) -> Features:
        """As the function `embed`; what is there already is not embedded again."""
        if not self._folders:
            return embed(engine, digest, images, batch_size, progress)
        name = f"{_key(engine, digest, images)}.npz"
        for folder in self._folders:
            if (found := _read(folder / name, images)) is not None:
                progress(len(images.names))
                return found
        fresh = embed(engine, digest, images, batch_size, progress)
        try:
            self._folders[0].mkdir(exist_ok=True)
            with replacing(self._folders[0] / name) as temporary:
                np.savez(temporary, z=fresh.z, kept=fresh.kept, skipped=np.array(fresh.skipped, np.str_))
        except (InvalidArgument, OSError):
            pass  # a folder that cannot be written costs time, no more
        return fresh


def _read(path: Path, images: ImageSet) -> Features | None:
    try:
        with np.load(path, allow_pickle=False) as found:
            return _features(found["z"], images, found["kept"], tuple(found["skipped"].tolist()))
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _key(engine: Engine, digest: str | None, images: ImageSet) -> str:
    backbone = engine.backbone
    facts = [backbone.fingerprint, digest, dict(backbone.preprocess), str(backbone.dtype), identity(images)]
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:32]
