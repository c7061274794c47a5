"""Measure training images for a run: the recipe's crops for the head, whole images for the norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils import parametrize

from smn_core.backbone import Backbone
from smn_core.errors import InvalidData, InvalidImage
from smn_core.images import ImageReader, draft_side_px
from smn_core.imageset import ImageSet
from training import masking
from training.config import PRECISIONS
from training.data import seeded
from training.learner import Learner
from training.progress import Bar, count_silently
from training.recentre import Recentred

CENTRE_CROPS = 512
NORM_IMAGES = 128  # one batch: a norm must meet what the norms before it make of the same images


def read_plain_images(backbone: Backbone, images: ImageSet, n_most: int) -> Iterator[Tensor]:
    """Pick up to `n_most` images and yield each as it will be served, [3, h, w]. Unreadable ones are left out.

    Raises:
        InvalidData: the set cannot be read, or fewer than two of the picked images can.
    """
    reader, draft_px = ImageReader(backbone.preprocess), draft_side_px(backbone.preprocess)
    for _, image in _read(images, _shuffle(images)[:n_most], draft_px, {}):
        yield reader.tensor(image)


def read_crops(learner: Learner, backbone: Backbone, images: ImageSet, n_images: int) -> Iterator[list[Tensor]]:
    """Yield the crops of up to `n_images` readable images as the run makes them, [3, h, w] each.

    The crops of an image depend on the run's seed and its number. Unreadable images are added to `learner.skipped`.

    Raises:
        InvalidData: the set cannot be read, or fewer than two of its images can.
    """
    make, draft_px = _make_views(learner, backbone), draft_side_px(backbone.preprocess)
    for index, image in islice(_read(images, _shuffle(images), draft_px, learner.skipped), n_images):
        with seeded(int(np.random.SeedSequence((learner.seed, index)).generate_state(1)[0])):
            yield make(image)


def _read(
    images: ImageSet, picked: Sequence[int], draft_px: int, skipped: dict[str, None]
) -> Iterator[tuple[int, Image.Image]]:
    n_read = 0
    for index in picked:
        try:
            image = images.image(index, draft_px)
        except InvalidImage as error:
            skipped[str(error)] = None
            continue
        n_read += 1
        yield index, image
    if n_read < 2:
        first = f"; the first that cannot: {next(iter(skipped))}" if skipped else ""
        raise InvalidData(f"{n_read} of {len(picked)} images can be read: at least two are needed{first}")


def _shuffle(images: ImageSet) -> list[int]:
    return [int(index) for index in np.random.default_rng(0).permutation(len(images.names))]


def _make_views(learner: Learner, backbone: Backbone) -> Callable[[Image.Image], list[Tensor]]:
    transform = learner.objective.make_transform(dict(backbone.preprocess))

    def make(image: Image.Image) -> list[Tensor]:
        views: Any = transform(image)
        return views if isinstance(views, list) else [views]

    return make


@torch.inference_mode()
def calibrate_head(
    learner: Learner,
    backbone: Backbone,
    images: ImageSet,
    bar: Bar = count_silently,
    is_late: Callable[[], bool] = lambda: False,
) -> None:
    """Calibrate the head on what it will see: up to `CENTRE_CROPS` of the recipe's crops, embedded as it is now.

    Crops of all sizes count alike. They are embedded in batches of the recipe's size and in its precision, and norms
    that normalise by the batch in a training step do so here. No running statistics change.

    Args:
        is_late: asked after every batch; no further image is read once it is true.

    Raises:
        InvalidData: the set cannot be read, or fewer than two of its images can.
    """
    with seeded(0):
        n_views = len(_make_views(learner, backbone)(Image.new("RGB", (64, 64))))
    n_images = min(len(images.names), max(2, CENTRE_CROPS // n_views))
    embedded: list[Tensor] = []
    waiting: list[list[Tensor]] = []
    on, dtype = backbone.device.type, PRECISIONS[learner.config.precision]
    numbers = torch.autocast(on, dtype, enabled=dtype != torch.float32)
    # The mask is worked out once, not at every forward.
    with (
        parametrize.cached(),
        numbers,
        _as_in_a_step(learner) as by_batch,
        bar("measuring what the head will see, crops", n_images * n_views) as advance,
    ):

        def embed() -> None:
            for crops in zip(*waiting, strict=True):
                embedded.append(learner.model(torch.stack(crops).to(backbone.device)).float().cpu())
                advance(len(crops))
            waiting.clear()

        for views in read_crops(learner, backbone, images, n_images):
            waiting.append(views)
            if len(waiting) == learner.config.batch_size:
                embed()
                if is_late():
                    break
        # One crop alone has no variance to normalise by.
        if waiting and not (by_batch and len(waiting) == 1):
            embed()
    learner.objective.calibrate(learner.head, torch.cat(embedded))


@contextmanager
def _as_in_a_step(learner: Learner) -> Iterator[bool]:
    """Put the model in the modes of a training step; yields whether a norm normalises by the batch.

    A head that is centred on what frozen norms give finds embeddings elsewhere once they normalise by the batch, and
    stays at a loss above ln(K): docs/experiments.md.
    """
    learner.set_modes()
    norms = [m for m in learner.model.modules() if m.training and m._buffers.get("running_mean") is not None]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        yield bool(norms)
    finally:
        learner.model.eval()
        for buffer, value in kept:
            buffer.copy_(value)


def recentre(learner: Learner, backbone: Backbone, images: ImageSet) -> None:
    """Unfold the norms of the untouched backbone, before the first step."""
    masked = {name for name, _ in masking.list_scores(learner.model)}
    learner.recentred = Recentred(learner.model, _norm_batch(backbone, images).to(backbone.device), masked)


def settle(learner: Learner, backbone: Backbone, images: ImageSet) -> None:
    """Give the unfolded norms their statistics under the mask, after the last step."""
    assert learner.recentred is not None
    learner.recentred.settle(_norm_batch(backbone, images).to(learner.device))


def _norm_batch(backbone: Backbone, images: ImageSet) -> Tensor:
    """The images [n, 3, h, w] that give the norms their statistics, before the first step and after the last."""
    return torch.stack(list(read_plain_images(backbone, images, NORM_IMAGES)))
