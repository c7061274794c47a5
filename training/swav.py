"""SwAV: swapped assignments between crops, for the scores of a mask or for all weights.

Loss, Sinkhorn and crops are lightly's; the prototypes are our own, since lightly's have a bias that the normalisation
misses. Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.loss import SwaVLoss
from lightly.transforms import SwaVTransform
from torch import Tensor, nn

from smn_core.errors import InvalidArgument

MAX_JITTER = 2.5
"""torchvision turns hues by half the circle at most; lightly's is .2 of this."""


@dataclass(frozen=True)
class Crops:
    """Views of an image: `n_big` of `big_px` give assignments, all predict them. Scales are fractions of the area."""

    big_px: int = 224
    n_big: int = 2
    big_scale: tuple[float, float] = (0.14, 1.0)
    small_px: int = 96
    n_small: int = 6
    small_scale: tuple[float, float] = (0.05, 0.14)
    jitter: float = 1.0
    grey: float = 0.2
    blur: float = 0.5
    flip: float = 0.5
    flip_vertical: float = 0.0

    def __post_init__(self) -> None:
        for name in ("big_scale", "small_scale"):
            require_scale(name, getattr(self, name))
        for name in ("grey", "blur", "flip", "flip_vertical"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidArgument(f"{name} is {getattr(self, name)}: a probability is in [0, 1]")
        if not 0 <= self.jitter <= MAX_JITTER:
            raise InvalidArgument(f"jitter is {self.jitter}: it must be in [0, {MAX_JITTER}]")
        if min(self.big_px, self.small_px) < 1 or self.n_small < 0:
            raise InvalidArgument("crops have at least one pixel, and n_small is not below 0")


def require_scale(name: str, scale: tuple[float, float]) -> None:
    """Raise InvalidArgument unless these are fractions of an area, the smaller one first."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InvalidArgument(f"{name} is {list(scale)}: fractions of the area, above 0, at most 1, the smaller first")


@dataclass(frozen=True)
class SwavConfig:
    """The self-supervised objective. Defaults are the paper's; `frozen_steps` -1 freezes the prototypes throughout."""

    crops: Crops = Crops()
    projection: int = 128
    prototypes: int = 500
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    queue: int = 512
    queue_from: float = 0.2
    frozen_steps: int = 5005
    centre: bool = False

    def __post_init__(self) -> None:
        if min(self.crops.n_big, self.projection, self.prototypes - 1, self.sinkhorn_iterations) < 1:
            raise InvalidArgument(
                "swav needs a big crop, a projection, two prototypes and a Sinkhorn iteration at least"
            )
        if not min(self.temperature, self.epsilon) > 0 or self.queue < 0:
            raise InvalidArgument("swav.temperature and swav.epsilon must be above 0, swav.queue not below")


def transform_for(crops: Crops, preprocess: dict[str, Any]) -> SwaVTransform:
    """PIL RGB -> the list of crops of one image, normalised with the backbone's mean and std, big ones first."""
    return SwaVTransform(
        crop_sizes=(crops.big_px, crops.small_px),
        crop_counts=(crops.n_big, crops.n_small),
        crop_min_scales=(crops.big_scale[0], crops.small_scale[0]),
        crop_max_scales=(crops.big_scale[1], crops.small_scale[1]),
        hf_prob=crops.flip,
        vf_prob=crops.flip_vertical,
        cj_strength=crops.jitter,
        random_gray_scale=crops.grey,
        gaussian_blur=crops.blur,
        normalize={"mean": list(preprocess["mean"]), "std": list(preprocess["std"])},
    )


class SwavHead(nn.Module):
    """Embeddings -> similarities to the prototypes; thrown away after training.

    `scores = normalise(((z - centre) / spread) @ projection.T + bias) @ prototypes.T`, prototypes row-normalised.
    """

    def __init__(self, n_features: int, config: SwavConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(n_features, config.projection)
        self.prototypes = nn.Linear(config.projection, config.prototypes, bias=False)
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Put the prototypes back on the unit sphere; called before every step."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def project(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        """Unit projections of embeddings."""
        centred = (z.float() - self.centre) / self.spread  # type: ignore[operator]
        return F.normalize(self.projection(centred).float(), dim=1)

    def forward(self, projected: Float[Tensor, "n p"]) -> Float[Tensor, "n k"]:
        """Similarities to the prototypes, float32 whatever the autocast."""
        with torch.autocast(projected.device.type, enabled=False):
            return self.prototypes(projected.float())


class Swav(nn.Module):
    """Loss of a list of crops, with the queue of earlier projections.

    `queue[c]` holds the last `queue` projections of big crop c on this process; its similarities are recomputed with
    today's prototypes at every step. It is used once training is `queue_from` done and it is full.
    """

    def __init__(self, n_features: int, config: SwavConfig, world_size: int = 1) -> None:
        super().__init__()
        self.config = config
        self.head = SwavHead(n_features, config)
        n_queue = config.queue // world_size
        self.register_buffer("queue", torch.zeros(config.crops.n_big, n_queue, config.projection))
        self.register_buffer("queued", torch.zeros((), dtype=torch.long))
        self.loss = SwaVLoss(
            temperature=config.temperature,
            sinkhorn_iterations=config.sinkhorn_iterations,
            sinkhorn_epsilon=config.epsilon,
            sinkhorn_gather_distributed=world_size > 1,
        )

    def forward(self, big: Float[Tensor, "v n d"], small: Float[Tensor, "w n d"], progress: float) -> Tensor:
        """Scalar loss of the embeddings of `v` big and `w` small crops of n images; `progress` in [0, 1)."""
        v, n, _ = big.shape
        projected = self.head.project(torch.cat([big.flatten(0, 1), small.flatten(0, 1)]))
        similar = self.head(projected)
        high, low = list(similar[: v * n].split(n)), list(similar[v * n :].unflatten(0, (len(small), n)))
        queued = self._queue_similarities(progress)
        with torch.autocast(big.device.type, enabled=False):
            loss = self.loss(high, low, queued).squeeze(0)
        self._enqueue(projected[: v * n].detach().view(v, n, -1), progress)
        return loss

    @torch.no_grad()
    def _queue_similarities(self, progress: float) -> list[Tensor] | None:
        length = self.queue.shape[1]  # type: ignore[index]
        if length == 0 or progress < self.config.queue_from or int(self.queued) < length:  # type: ignore[arg-type]
            return None
        return [self.head(projected) for projected in self.queue]  # type: ignore[union-attr]

    @torch.no_grad()
    def _enqueue(self, projected: Float[Tensor, "v n p"], progress: float) -> None:
        """Newest first; what falls off the end is gone."""
        length = self.queue.shape[1]  # type: ignore[index]
        if length == 0 or progress < self.config.queue_from:
            return
        self.queue.copy_(torch.cat([projected, self.queue], dim=1)[:, :length])  # type: ignore[operator, list-item]
        self.queued.add_(projected.shape[1])  # type: ignore[operator]
