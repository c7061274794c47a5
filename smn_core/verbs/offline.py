"""Embed a set of images in batches, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import BinaryIO

import torch
from jaxtyping import Float32
from torch import Tensor

from smn_core.ahead import in_order
from smn_core.backbone import require_dimensions
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidData, InvalidImage
from smn_core.images import ImageReader, draft_side_px
from smn_core.imageset import ImageSet

OnBatch = Callable[[int], None]
"""Called after every batch with its number of images."""

Load = Callable[[int], Float32[Tensor, "3 h w"]]
"""Takes the number of an image and returns its model input."""

Embed = Callable[[Float32[Tensor, "n 3 h w"]], Float32[Tensor, "n d"]]
"""Takes a batch of model inputs and returns their embeddings."""


def say_nothing(_: int) -> None:
    """An `OnBatch` that does nothing."""


def make_loader(images: ImageSet, engine: Engine) -> Load:
    """A function that loads the images of a set as the server would make them."""
    preprocess = engine.backbone.preprocess
    reader, draft_px = ImageReader(preprocess), draft_side_px(preprocess)
    return lambda index: reader.tensor(images.image(index, draft_px))


def read_batches(
    n_images: int, load: Load, batch_size: int, workers: int, skipped: list[str] | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the images in order, in batches of indices and model inputs [n,3,H,W].

    Meanwhile `workers` threads decode the next batches. With a list `skipped`, an image that cannot be decoded is left
    out and its error is put into the list.

    Raises:
        InvalidImage: an image cannot be decoded, and `skipped` is None.
    """

    def load_batch(first: int) -> tuple[list[int], list[Tensor], list[str]]:
        kept, inputs, bad = [], [], []
        for index in range(first, min(first + batch_size, n_images)):
            try:
                inputs.append(load(index))
                kept.append(index)
            except InvalidImage as error:
                if skipped is None:
                    raise
                bad.append(str(error))
        return kept, inputs, bad

    firsts = range(0, n_images, batch_size)
    jobs = (partial(load_batch, first) for first in firsts)
    with closing(in_order(jobs, workers, workers, "smn-decode")) as batches:
        for kept, inputs, bad in batches:
            if skipped is not None:
                skipped.extend(bad)
            if inputs:
                yield kept, torch.stack(inputs)


def embed_through(engine: Engine, digest: str | None) -> Embed:
    """A function that embeds through a mask, which the engine has prepared; None means the untouched backbone."""
    return lambda x: engine.embed(x, [Segment(digest, 0, x.shape[0])]).embeddings


def keep_first(embed: Embed, dimensions: int | None, width: int) -> tuple[Embed, int]:
    """A function that keeps the first `dimensions` components of what `embed` returns, and their number.

    `width` is what `embed` returns; `dimensions` None keeps all of it.

    Raises:
        InvalidArgument: `dimensions` is below 1 or above `width`.
    """
    require_dimensions(dimensions, width)
    if dimensions is None:
        return embed, width
    return (lambda x: embed(x)[:, :dimensions]), dimensions


def embed_batches(
    embed: Embed, inputs: Iterator[tuple[list[int], Tensor]]
) -> Iterator[tuple[list[int], Float32[Tensor, "n d"]]]:
    """Embed batches: yield the indices and embeddings of each.

    Raises:
        InvalidImage: an embedding is not finite; the message has the number of the image.
    """
    for indices, x in inputs:
        z = embed(x)
        if not torch.isfinite(z).all():
            row = int((~torch.isfinite(z).all(1)).nonzero()[0])
            raise InvalidImage(f"image {indices[row]}: its embedding is not finite")
        yield indices, z


def embed_to_rows(
    images: ImageSet,
    engine: Engine,
    embed: Embed,
    raw: BinaryIO,
    *,
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
    on_batch: OnBatch = say_nothing,
) -> tuple[list[int], list[str]]:
    """Embed all images and write float32 rows to `raw`, batch by batch, a row for each readable image.

    Args:
        strict: an unreadable image ends it. Otherwise such images have no row.

    Returns:
        The number of the image of each row, and why each of the others cannot be read.

    Raises:
        InvalidImage: an image cannot be decoded and `strict` is said.
        InvalidData: no image can be decoded.
    """
    n_images = len(images.names)
    skipped: list[str] = []
    kept: list[int] = []
    inputs = read_batches(n_images, make_loader(images, engine), batch_size, workers, None if strict else skipped)
    for indices, z in embed_batches(embed, inputs):
        raw.write(z.numpy().astype("<f4").tobytes())
        kept += indices
        on_batch(len(indices))
    if not kept:
        raise InvalidData(f"none of the {n_images} images can be read; the first: {skipped[0]}")
    return kept, skipped
