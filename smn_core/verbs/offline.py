"""Embed a set of images in batches, without a server."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from smn_core.backbone import require_dimensions
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidData, InvalidImage
from smn_core.files import replacing, write_bytes
from smn_core.images import ImageReader, draft_side_px
from smn_core.imageset import FolderSet, ImageSet

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

    with ThreadPoolExecutor(workers, thread_name_prefix="smn-decode") as pool:
        ahead: deque[Future[tuple[list[int], list[Tensor], list[str]]]] = deque()
        firsts = iter(range(0, n_images, batch_size))
        ahead.extend(pool.submit(load_batch, first) for first in islice(firsts, workers + 1))
        while ahead:
            kept, inputs, bad = ahead.popleft().result()
            ahead.extend(pool.submit(load_batch, first) for first in islice(firsts, 1))
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


def _line(name: str) -> str:
    """A path without line breaks, so that line i of a file belongs to row i."""
    return name.replace("\n", "\\n")


def embed_to_file(
    images: ImageSet,
    engine: Engine,
    embed: Embed,
    width: int,
    out: Path,
    *,
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
    on_batch: OnBatch = say_nothing,
) -> list[str]:
    """Embed all images and write float32 [N,width] to `out` (`.npy`), a row for each readable image.

    For a folder the relative paths are written too, line i for row i, to `out` with the suffix `.txt`.

    Args:
        strict: an unreadable image ends it. Otherwise such images have no row.

    Returns:
        Why each of the images without a row cannot be read.

    Raises:
        InvalidImage: an image cannot be decoded and `strict` is said; nothing is written.
        InvalidData: no image can be decoded; nothing is written.
        InvalidArgument: `out` cannot be written.
    """
    n_images = len(images.names)
    skipped: list[str] = []
    kept: list[int] = []
    inputs = read_batches(n_images, make_loader(images, engine), batch_size, workers, None if strict else skipped)
    with replacing(out) as temporary:
        # Written batch by batch, not through a memory map: on a full disk a map would end the process with SIGBUS.
        with temporary.open("wb") as file:
            _write_header(file, n_images, width)
            for indices, z in embed_batches(embed, inputs):
                file.write(z.numpy().astype("<f4").tobytes())
                kept += indices
                on_batch(len(indices))
            if not kept:
                raise InvalidData(f"none of the {n_images} images can be read; the first: {skipped[0]}")
            # numpy leaves room in a header for a longer first axis, so it can be written again in its place.
            file.seek(0)
            _write_header(file, len(kept), width)
        if isinstance(images, FolderSet):
            names = "".join(f"{_line(images.names[index])}\n" for index in kept)
            write_bytes(out.with_suffix(".txt"), os.fsencode(names))
    return skipped


def _write_header(file: BinaryIO, n_rows: int, width: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n_rows, width)})
