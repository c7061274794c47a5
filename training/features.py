"""Embed a split through one mask, and keep the embeddings in a folder for the next step or verb."""

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
from smn_core.verbs.offline import OnBatch, embed_through, make_loader, read_batches, say_nothing
from training.data import Subset, seeded
from training.identity import identify
from training.supervised import make_crop

VIEW_IMAGES = 500
VIEW_SCALE = (0.4, 1.0)
VIEW_SEEDS = 1_000_003
DECODE_THREADS = 2
EMBEDDINGS = "embeddings"
"""The folder for them inside the folder of a cascade."""


@dataclass(frozen=True)
class Features:
    """Embeddings of one split through one mask, a row for each readable image; `kept` are their numbers."""

    z: Float32[ndarray, "n d"]
    labels: Int64[ndarray, "n"] | None
    kept: Int64[ndarray, "n"]
    skipped: tuple[str, ...]


def embed(
    engine: Engine, digest: str | None, images: ImageSet, batch_size: int, on_batch: OnBatch = say_nothing
) -> Features:
    """Embed every readable image, in order.

    Raises:
        InvalidData: no image can be read.
    """
    return embed_each(engine, [digest], images, batch_size, on_batch)[0]


def embed_each(
    engine: Engine,
    digests: Sequence[str | None],
    images: ImageSet,
    batch_size: int,
    on_batch: OnBatch = say_nothing,
) -> list[Features]:
    """As `embed`, through each of several masks; every image is read once."""
    skipped: list[str] = []
    inputs = read_batches(len(images.names), make_loader(images, engine), batch_size, DECODE_THREADS, skipped)
    return _collect(engine, digests, images, inputs, skipped, on_batch)


def sample(images: ImageSet, most_images: int, seed: int = 0) -> Subset:
    """Up to so many of the images, in their order; always the same ones of a seed."""
    picked = np.random.default_rng(seed).permutation(len(images.names))[:most_images]
    return Subset(images, np.sort(picked))


def embed_view(
    engine: Engine,
    digest: str | None,
    images: ImageSet,
    seed: int,
    batch_size: int,
    *,
    scale: tuple[float, float] = VIEW_SCALE,
    most_images: int = VIEW_IMAGES,
) -> Float32[ndarray, "n d"]:
    """Embeddings of one random crop of every image of a `sample`, flipped half the time.

    Crops depend on (seed, place in the sample) alone. Unreadable images have no row.

    Args:
        scale: least and largest part of the image's area that a crop has.

    Raises:
        InvalidData: none can be read.
    """
    return embed_view_each(engine, [digest], sample(images, most_images), seed, batch_size, scale=scale)[0].z


def embed_view_each(
    engine: Engine,
    digests: Sequence[str | None],
    images: ImageSet,
    seed: int,
    batch_size: int,
    *,
    scale: tuple[float, float] = VIEW_SCALE,
    on_batch: OnBatch = say_nothing,
) -> list[Features]:
    """The same random crops of all images, embedded through each of several masks; every image is read once."""
    preprocess = dict(engine.backbone.preprocess)
    transform, draft_px = make_crop(scale, preprocess), draft_side_px(preprocess)

    def load(index: int) -> Tensor:
        image = images.image(index, draft_px)
        with seeded(VIEW_SEEDS * (seed + 1) + index):
            return transform(image)

    skipped: list[str] = []
    # One thread: the crops draw from global generators.
    inputs = read_batches(len(images.names), load, batch_size, 1, skipped)
    return _collect(engine, digests, images, inputs, skipped, on_batch)


def _collect(
    engine: Engine,
    digests: Sequence[str | None],
    images: ImageSet,
    inputs: Iterator[tuple[list[int], Tensor]],
    skipped: list[str],
    on_batch: OnBatch,
) -> list[Features]:
    kept: list[int] = []
    rows: list[list[ndarray]] = [[] for _ in digests]
    through = [embed_through(engine, digest) for digest in digests]
    for indices, x in inputs:
        kept += indices
        for found, run in zip(rows, through, strict=True):
            found.append(run(x).numpy())
            on_batch(len(indices))
    if not kept:
        raise InvalidData(f"none of the {len(images.names)} images can be read; the first: {skipped[0]}")
    numbers, bad = np.array(kept, np.int64), tuple(skipped)
    return [_features(np.concatenate(found), images, numbers, bad) for found in rows]


def _features(z: ndarray, images: ImageSet, kept: ndarray, skipped: tuple[str, ...]) -> Features:
    return Features(z, images.labels[kept] if images.labels is not None else None, kept, skipped)


class Cache:
    """Embeddings on disk. A file's name is a digest of backbone, mask, preprocessing and images.

    Args:
        folders: searched in this order. The first takes what is new. Without any, nothing is kept.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._folders = folders

    def embed(
        self, engine: Engine, digest: str | None, images: ImageSet, batch_size: int, on_batch: OnBatch = say_nothing
    ) -> Features:
        """As the function `embed`, but read what lies in a folder already."""
        if not self._folders:
            return embed(engine, digest, images, batch_size, on_batch)
        name = f"{_key(engine, digest, images)}.npz"
        for folder in self._folders:
            if (found := _read(folder / name, images)) is not None:
                on_batch(len(images.names))
                return found
        fresh = embed(engine, digest, images, batch_size, on_batch)
        try:
            self._folders[0].mkdir(exist_ok=True)
            with replacing(self._folders[0] / name) as temporary:
                np.savez(temporary, z=fresh.z, kept=fresh.kept, skipped=np.array(fresh.skipped, np.str_))
        except (InvalidArgument, OSError):
            pass  # if the folder cannot be written, the embeddings are only made again next time
        return fresh


def _read(path: Path, images: ImageSet) -> Features | None:
    try:
        with np.load(path, allow_pickle=False) as found:
            return _features(found["z"], images, found["kept"], tuple(found["skipped"].tolist()))
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _key(engine: Engine, digest: str | None, images: ImageSet) -> str:
    backbone = engine.backbone
    facts = [backbone.fingerprint, digest, dict(backbone.preprocess), str(backbone.dtype), identify(images)]
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:32]
