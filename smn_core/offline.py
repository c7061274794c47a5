"""Embed a whole set of images in batches, without a server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smn_core.engine import Engine, Segment
from smn_core.files import replacing, write_bytes
from smn_core.images import ImageReader, draft_side_px
from smn_core.imageset import FolderSet, ImageSet

Progress = Callable[[int], None]
"""Called with the number of images that were just done."""


def batches(images: ImageSet, engine: Engine, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Model inputs float32 [n,3,H,W] in the order of the set; decoding runs ahead in `workers` threads."""
    preprocess = engine.backbone.preprocess
    reader, draft_px = ImageReader(preprocess), draft_side_px(preprocess)

    def load(first: int) -> Tensor:
        indices = range(first, min(first + batch_size, len(images.names)))
        return torch.stack([reader.tensor(images.image(i, draft_px)) for i in indices])

    with ThreadPoolExecutor(workers, thread_name_prefix="smn-decode") as pool:
        ahead: deque[Future[Tensor]] = deque()
        for first in range(0, len(images.names), batch_size):
            ahead.append(pool.submit(load, first))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def embed_to_file(
    images: ImageSet,
    engine: Engine,
    digest: str | None,
    out: Path,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: Progress = lambda _: None,
) -> None:
    """Write float32 [N,D] to `out` (`.npy`) through one mask, and a folder's relative paths to `out` with `.txt`.

    Raises:
        InvalidImage: an image cannot be decoded; nothing is written.
        InvalidArgument: `out` cannot be written.
    """
    n_images, n_features = len(images.names), engine.backbone.n_features
    with replacing(out) as temporary:
        rows = np.lib.format.open_memmap(temporary, "w+", np.float32, (n_images, n_features))
        done = 0
        for x in batches(images, engine, batch_size, workers):
            n = x.shape[0]
            rows[done : done + n] = engine.embed(x, [Segment(digest, 0, n)]).embeddings.numpy()
            done += n
            progress(n)
        rows.flush()
        if isinstance(images, FolderSet):
            write_bytes(out.with_suffix(".txt"), "".join(f"{name}\n" for name in images.names).encode())
