"""Near-copies among images: their thumbnails correlate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from PIL import Image

from smn_core.errors import InvalidImage
from smn_core.imageset import ImageSet

THUMBNAIL_PX = 16
DRAFT_PX = 64
NEAR_COPY = 0.97
"""Correlation of two thumbnails from which two images count as near-copies."""
READ_AT_ONCE = 64


def count_distinct(sets: Sequence[ImageSet], enough: int) -> tuple[int, int]:
    """How many images differ, near-copies counted once, and how many were read for it: no more than until `enough` do.

    Unreadable images are passed over.
    """
    places = chain.from_iterable(((images, index) for index in range(len(images.names))) for images in sets)
    found: list[ndarray] = []
    for images, index in places:
        try:
            found.append(thumbnail(images.image(index, DRAFT_PX)))
        except InvalidImage:
            continue
        if len(found) % READ_AT_ONCE == 0 and _count_groups(found) >= enough:
            break
    return _count_groups(found), len(found)


def _count_groups(thumbnails: Sequence[ndarray]) -> int:
    return int(group_copies(np.stack(thumbnails)).max()) + 1 if len(thumbnails) else 0


def thumbnail(image: Image.Image) -> Float32[ndarray, "p"]:
    """Grey, small, with mean 0 and length 1, so that brightness and contrast do not count; zeros for one colour."""
    small = image.convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    x = np.asarray(small, np.float32).reshape(-1)
    x = x - x.mean()
    length = float(np.linalg.norm(x))
    return x / length if length > THUMBNAIL_PX / 2 else np.zeros_like(x)


def group_copies(thumbnails: Float32[ndarray, "n p"]) -> Int64[ndarray, "n"]:
    """Number the groups of near-copies, from 0: images are linked where their thumbnails correlate by `NEAR_COPY`.

    Images of one colour make one group.
    """
    flat = np.flatnonzero(~thumbnails.any(1))
    root = np.arange(len(thumbnails))
    root[flat] = flat[0] if len(flat) else 0
    for i, j in _pairs(thumbnails):
        a, b = _find(root, i), _find(root, j)
        root[max(a, b)] = min(a, b)
    tops = np.array([_find(root, i) for i in range(len(root))])
    return np.unique(tops, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _pairs(thumbnails: Float32[ndarray, "n p"]) -> Iterator[tuple[int, int]]:
    for first in range(0, len(thumbnails), 1024):
        near = thumbnails[first : first + 1024] @ thumbnails[first:].T > NEAR_COPY
        for i, j in zip(*np.nonzero(np.triu(near, 1)), strict=True):
            yield first + int(i), first + int(j)


def _find(root: Int64[ndarray, "n"], i: int) -> int:
    while root[i] != i:
        root[i] = root[root[i]]
        i = int(root[i])
    return i
