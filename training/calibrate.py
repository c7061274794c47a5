"""What a run measures on plain training images: the features' centre and spread, and the statistics of norms."""

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
NORM_IMAGES = 128
"""They run as one batch, so that every norm sees what the norms before it made of them."""


def plain_images(backbone: Backbone, images: ImageSet, n_most: int) -> Iterator[Tensor]:
    """Some images as they will be served, [3, h, w] each; those that cannot be read are passed over.

    Raises:
        InvalidData: the whole set cannot be read, or fewer than two of the images that were picked.
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
def set_centre(learner: Learner, backbone: Backbone, images: ImageSet) -> None:
    """Centre and spread of the backbone's features, as it is now, over some training images; fixed for the run."""
    assert learner.swav is not None
    learner.model.eval()
    found = plain_images(backbone, images, CENTRE_IMAGES)
    z = torch.cat([learner.model(x[None].to(backbone.device)).float().cpu() for x in found])
    learner.swav.head.centre.copy_(z.mean(0))  # type: ignore[operator]
    learner.swav.head.spread.copy_(z.std(0).clamp_min(1e-6))  # type: ignore[operator]


def recentre(learner: Learner, backbone: Backbone, images: ImageSet) -> None:
    """Unfold the norms of the untouched backbone; before the first step."""
    masked = {name for name, _ in masking.attached(learner.model)}
    learner.recentred = Recentred(learner.model, _norm_batch(backbone, images).to(backbone.device), masked)


def settle(learner: Learner, backbone: Backbone, images: ImageSet) -> None:
    """Give the unfolded norms their statistics under the mask; after the last step."""
    assert learner.recentred is not None
    learner.recentred.settle(_norm_batch(backbone, images).to(learner.device))


def _norm_batch(backbone: Backbone, images: ImageSet) -> Tensor:
    """The images [n, 3, h, w] whose statistics the norms take, before the first step and after the last."""
    return torch.stack(list(plain_images(backbone, images, NORM_IMAGES)))
