"""The picture of what changed: the neighbours of a few images before and after, on one sheet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from PIL import Image, ImageDraw, ImageOps

from smn_core.files import replacing
from smn_core.imageset import ImageSet
from training.evaluation.signs import neighbours, normalise

QUERIES, NEIGHBOURS = 5, 5
TILE_PX, GAP_PX, TITLE_PX = 96, 4, 18
"""Sides of a picture, of the space between two, and of the line of titles."""
PAPER, INK = "white", "black"


def draw_neighbours(
    images: ImageSet, before: Float32[ndarray, "n d"], after: Float32[ndarray, "n d"], out: Path
) -> list[str]:
    """Draw, for a few images chosen at random, the nearest others before and after. Returns the names of those images.

    Args:
        images: n of them, all readable.
        before, after: their embeddings, a row each.
    """
    n = len(before)
    k = min(NEIGHBOURS, n - 1)
    queries = np.random.default_rng(0).permutation(n)[:QUERIES]
    sheets = [_nearest_first(z, k)[queries] for z in (before, after)]
    step = TILE_PX + GAP_PX
    sheet = Image.new("RGB", ((1 + 2 * k) * step + 3 * GAP_PX, TITLE_PX + len(queries) * step), PAPER)
    pen = ImageDraw.Draw(sheet)
    lefts = (0, step + GAP_PX, (1 + k) * step + 2 * GAP_PX)
    for left, title in zip(lefts, ("image", "nearest before", "nearest after"), strict=True):
        pen.text((left + GAP_PX, GAP_PX), title, fill=INK)
    for row, query in enumerate(queries):
        top = TITLE_PX + row * step
        for left, index in _place(lefts, step, int(query), *(found[row] for found in sheets)):
            tile = ImageOps.fit(images.image(index, 2 * TILE_PX), (TILE_PX, TILE_PX))
            sheet.paste(tile, (left, top))
    with replacing(out) as temporary:
        sheet.save(temporary)
    return [images.names[int(query)] for query in queries]


def _place(
    lefts: tuple[int, int, int], step: int, query: int, before: Int64[ndarray, "k"], after: Int64[ndarray, "k"]
) -> Iterator[tuple[int, int]]:
    """Where the pictures of a row stand: the image, then its neighbours before and after."""
    yield lefts[0], query
    for left, found in zip(lefts[1:], (before, after), strict=True):
        for place, index in enumerate(found):
            yield left + place * step, int(index)


def _nearest_first(z: Float32[ndarray, "n d"], k: int) -> Int64[ndarray, "n k"]:
    """The k nearest others of every row, the nearest first."""
    found, unit = neighbours(z, k), normalise(z)
    similar = np.einsum("nd,nkd->nk", unit, unit[found])
    return np.take_along_axis(found, np.argsort(-similar, axis=1), axis=1)
