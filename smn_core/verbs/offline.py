"""Embed a whole set of images in batches, without a server."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from smn_core.backbone import require_dimensions
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidImage
from smn_core.files import replacing, write_bytes
from smn_core.images import ImageReader, draft_side_px
from smn_core.imageset import FolderSet, ImageSet

Progress = Callable[[int], None]
"""Called with the number of images that were just done."""

Load = Callable[[int], Float32[Tensor, "3 h w"]]
"""The model input of the image with this index."""

Embed = Callable[[Float32[Tensor, "n 3 h w"]], Float32[Tensor, "n d"]]
"""Embeddings of a batch of model inputs."""


def silent(_: int) -> None:
    """No progress."""


def loader(images: ImageSet, engine: Engine) -> Load:
    """The evaluation view of every image, as the server would make it."""
    preprocess = engine.backbone.preprocess
    reader, draft_px = ImageReader(preprocess), draft_side_px(preprocess)
    return lambda index: reader.tensor(images.image(index, draft_px))


def batches(
    n_images: int, load: Load, batch_size: int, workers: int, skipped: list[str] | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices and model inputs [n,3,H,W], in order; decoding runs ahead in `workers` threads.

    An image that cannot be decoded raises, or where a list is given is named there and left out.

    Raises:
        InvalidImage: an image cannot be decoded and `skipped` is None.
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


def through(engine: Engine, digest: str | None) -> Embed:
    """Embedding through one mask that the engine has prepared; None is the untouched backbone."""
    return lambda x: engine.embed(x, [Segment(digest, 0, x.shape[0])]).embeddings


def first(embed: Embed, dimensions: int | None, width: int) -> tuple[Embed, int]:
    """The same with the first `dimensions` of `width` components, and how many those are.

    Raises:
        InvalidArgument: more than there are, or none.
    """
    require_dimensions(dimensions, width)
    if dimensions is None:
        return embed, width
    return (lambda x: embed(x)[:, :dimensions]), dimensions


def embed_batches(
    embed: Embed, inputs: Iterator[tuple[list[int], Tensor]]
) -> Iterator[tuple[list[int], Float32[Tensor, "n d"]]]:
    """Indices and embeddings of every batch."""
    for indices, x in inputs:
        yield indices, embed(x)


def _line(name: str) -> str:
    """A path as one line, so that line i is row i."""
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
    progress: Progress = silent,
) -> None:
    """Write float32 [N,width] to `out` (`.npy`), and a folder's relative paths to `out` with `.txt`.

    Raises:
        InvalidImage: an image cannot be decoded; nothing is written.
        InvalidArgument: `out` cannot be written.
    """
    n_images = len(images.names)
    inputs = batches(n_images, loader(images, engine), batch_size, workers)
    with replacing(out) as temporary:
        # Written row by row: a memory map of a file that outgrows its disk ends the process with SIGBUS.
        with temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (n_images, width)}
            np.lib.format.write_array_header_1_0(file, header)
            for indices, z in embed_batches(embed, inputs):
                file.write(z.numpy().astype("<f4").tobytes())
                progress(len(indices))
        if isinstance(images, FolderSet):
            write_bytes(out.with_suffix(".txt"), os.fsencode("".join(f"{_line(name)}\n" for name in images.names)))
