"""Fit a mask's map on images: embed them, whole and in gentle views, and hand the embeddings to the closed forms."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.affine import DIAGONAL, Affine, in_precision
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.imageset import ImageSet
from smn_core.matrices import PRECISIONS
from smn_core.verbs.offline import OnBatch, say_nothing
from training.features import embed, embed_view, sample
from training.within import fit_diagonal, fit_within

WITHIN = "within"
FORMS = (WITHIN, DIAGONAL)
FEWEST_IMAGES = 10
MOST_IMAGES = 200
GENTLE_SCALE = (0.7, 1.0)
VIEW_SEEDS = (100, 101, 102)
"""Three views; none of the seeds is one that evaluation looks at."""


def n_embeddings(images: ImageSet, form: str) -> int:
    """How many images `fit_map` embeds: what a progress bar counts to."""
    n_images = min(len(images.names), MOST_IMAGES)
    return n_images * (1 + len(VIEW_SEEDS)) if form == WITHIN else n_images


def fit_map(
    engine: Engine,
    digest: str | None,
    images: ImageSet,
    form: str = WITHIN,
    *,
    precision: str = "float32",
    batch_size: int = 32,
    on_batch: OnBatch = say_nothing,
) -> Affine:
    """The map for embeddings through a prepared mask, or through the untouched backbone (None), fitted without labels.

    Up to `MOST_IMAGES` of the images are embedded, always the same ones; unreadable images are passed over. `within`
    whitens by the scatter of three gentle views (a crop of 70 to 100 % of the area, flipped half the time) and centres
    on the mean of the whole images; `diagonal` standardises by the whole images alone.

    Args:
        precision: of the stored matrix: float32, float16 or int8; the diagonal form has only float32.

    Raises:
        InvalidArgument: an unknown form or precision, or a mask that has a map already.
        InvalidData: fewer than `FEWEST_IMAGES` readable images, or all of them embedded alike.
        NotReady: the mask is not prepared.
    """
    if form not in FORMS:
        raise InvalidArgument(f"unknown form of map {form!r}: choose {' or '.join(FORMS)}")
    if precision not in PRECISIONS:
        raise InvalidArgument(f"unknown precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if digest is not None and engine.has_map(digest):
        raise InvalidArgument(
            f"mask {digest} has a map already, and a map is fitted on unmapped embeddings: take it off"
        )
    picked = sample(images, MOST_IMAGES)
    whole = embed(engine, digest, picked, batch_size, on_batch).z
    if len(whole) < FEWEST_IMAGES:
        raise InvalidData(f"{len(whole)} readable images are too few to fit a map: it takes {FEWEST_IMAGES} at least")
    if form == DIAGONAL:
        return fit_diagonal(whole)
    views = np.stack([_view(engine, digest, images, seed, batch_size, on_batch) for seed in VIEW_SEEDS])
    return in_precision(fit_within(views, whole.mean(0, dtype=np.float64).astype(np.float32)), precision)


def _view(
    engine: Engine, digest: str | None, images: ImageSet, seed: int, batch_size: int, on_batch: OnBatch
) -> Float32[ndarray, "n d"]:
    z = embed_view(engine, digest, images, seed, batch_size, scale=GENTLE_SCALE, most_images=MOST_IMAGES)
    on_batch(len(z))
    return z
