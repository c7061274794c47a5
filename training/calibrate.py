"""Measure plain training images for a run: their features for the head, their statistics for the norms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from smn_core.backbone import Backbone
from smn_core.errors import InvalidData
from smn_core.images import ImageReader, draft_side_px
from smn_core.imageset import ImageSet
from training import masking
from training.learner import Learner
from training.recentre import Recentred

CENTRE_IMAGES = 512
NORM_IMAGES = 128  # one batch: a norm must meet what the norms before it make of the same images


def read_plain_images(backbone: Backbone, images: ImageSet, n_most: int) -> Iterator[Tensor]:
    """Pick up to `n_most` images and yield each as it will be served, [3, h, w]. Unreadable ones are left out.

    Raises:
        InvalidData: the set cannot be read, or fewer than two of the picked images can.
    """
    reader, draft_px = ImageReader(backbone.preprocess), draft_side_px(backbone.preprocess)
    picked = np.random.default_rng(0).permutation(len(images.names))[:n_most]
    n_read = 0
    for index in picked:
        try:
            x = reader.tensor(images.image(int(index), draft_px))
        except InvalidData:
            raise
        except Exception:
            continue
        n_read += 1
        yield x
    if n_read < 2:
        raise InvalidData(f"{n_read} of {len(picked)} images can be read: at least two are needed")


@torch.inference_mode()
def calibrate_head(learner: Learner, backbone: Backbone, images: ImageSet) -> None:
    """Calibrate the head on the features that the backbone, as it is now, gives some training images."""
    learner.model.eval()
    found = read_plain_images(backbone, images, CENTRE_IMAGES)
    z = torch.cat([learner.model(x[None].to(backbone.device)).float().cpu() for x in found])
    learner.objective.calibrate(learner.head, z)


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
