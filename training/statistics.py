"""Normalisation statistics of a set of images, without learning: what BatchNorm makes of the target alone.

A BatchNorm divides by statistics of the images that the backbone was trained on. Here every norm gets the mean and the
variance that its input has on other images, with or without a mask, where every norm before it already uses those of
the same images. A mask file carries them as its state.

Source: Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", 2016 (AdaBN).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from torch import Tensor, nn

from smn_core.backbone import Backbone
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.images import ImageReader, draft_side_px
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.verbs.export import masked_weights
from smn_core.verbs.offline import OnBatch, read_batches, say_nothing
from training.features import sample
from training.recentre import Norm, find_norms

MOST_IMAGES = 200
BATCH = 32
DECODE_THREADS = 1
FEWEST_IMAGES = 10


def has_living_norms(model: nn.Module) -> bool:
    """Whether a model has BatchNorm that does something: where it was folded away, its statistics are 0 and 1."""
    norms = find_norms(model).values()
    return any(bool(norm.running_mean.any()) for norm in norms)  # type: ignore[union-attr]


def n_embeddings(images: ImageSet) -> int:
    """How many images `fit_statistics` runs: what a progress bar counts to."""
    return min(len(images.names), MOST_IMAGES)


@torch.no_grad()
def fit_statistics(
    backbone: Backbone,
    images: ImageSet,
    mask: TaskMask | None = None,
    *,
    share: float = 1.0,
    on_batch: OnBatch = say_nothing,
) -> dict[str, Float32[ndarray, "c"]]:
    """The running statistics of whole images, by buffer name, as a mask has them.

    Up to `MOST_IMAGES` of the images are read, always the same ones; unreadable images are passed over. They run in
    batches of `BATCH`, each normalised by itself, and the batches are averaged.

    Args:
        backbone: float32, and not owned by an engine. It is left as it was found.
        mask: whose weights the images run through; None: the untouched backbone.
        share: 1 takes the statistics of the images, 0 keeps the backbone's, and between them they are mixed.

    Raises:
        InvalidArgument: a backbone without living BatchNorm, or `share` outside [0, 1].
        InvalidData: fewer than `FEWEST_IMAGES` readable images.
        WrongBackbone: the mask was made for another backbone.
    """
    if not 0 <= share <= 1:
        raise InvalidArgument(f"share {share} must lie in [0, 1]")
    model, norms = backbone.model, find_norms(backbone.model)
    if not has_living_norms(model):
        raise InvalidArgument(f"{backbone.architecture} has no BatchNorm whose statistics could be measured")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        if mask is not None:
            model.load_state_dict({name: torch.tensor(value) for name, value in masked_weights(backbone, mask).items()})
        with _measuring(model, norms):
            n_read = 0
            for x in _read(backbone, images):
                model(x.to(backbone.device))
                n_read += len(x)
                on_batch(len(x))
        if n_read < FEWEST_IMAGES:
            raise InvalidData(f"{n_read} readable images are too few to measure statistics: it takes {FEWEST_IMAGES}")
        return {
            f"{name}.{kind}": _mix(before[f"{name}.{kind}"], getattr(norm, kind), share)
            for name, norm in norms.items()
            for kind in ("running_mean", "running_var")
        }
    finally:
        model.load_state_dict(before)


def _mix(own: Tensor, measured: Tensor, share: float) -> Float32[ndarray, "c"]:
    return np.asarray(((1 - share) * own + share * measured).float().cpu().numpy().copy())


@contextmanager
def _measuring(model: nn.Module, norms: Mapping[str, Norm]) -> Iterator[None]:
    """The norms normalise by every batch and average its statistics; the rest of the model runs as it is served."""
    momenta = {name: norm.momentum for name, norm in norms.items()}
    model.eval()
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        model.eval()
        for name, norm in norms.items():
            norm.momentum = momenta[name]


def _read(backbone: Backbone, images: ImageSet) -> Iterator[Float32[Tensor, "n 3 h w"]]:
    """Batches of images as they are served. A last batch that is too small to tell a variance is left out."""
    picked = sample(images, MOST_IMAGES)
    reader, draft_px = ImageReader(backbone.preprocess), draft_side_px(backbone.preprocess)

    def load(index: int) -> Tensor:
        return reader.tensor(picked.image(index, draft_px))

    for n_before, (kept, x) in enumerate(read_batches(len(picked.names), load, BATCH, DECODE_THREADS, [])):
        if n_before == 0 or len(kept) >= BATCH // 2:
            yield x
