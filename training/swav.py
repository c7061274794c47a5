"""SwAV, learning without labels: one crop of an image predicts to which prototypes another crop is assigned.

Loss, Sinkhorn and crops are lightly's. The prototypes are our own: lightly's have a bias, which its normalisation
leaves out. Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.loss import SwaVLoss
from lightly.transforms import SwaVTransform
from torch import Tensor, nn

from smn_core.errors import InvalidArgument, InvalidData
from smn_core.mask import Head
from training.data import Batch
from training.objective import Embed, Watch

MAX_JITTER = 2.5
"""torchvision turns hues by .5 at most, and lightly turns them by .2 times the jitter."""

STUCK_AFTER_STEPS = 30
STUCK_ABOVE = 0.99
"""Part of ln(K) above which a loss has learned nothing. A collapse may as well lie above ln(K), and stay there."""

FALLING_BY = 0.003
"""A head that learns for the first time comes from above: while a loss falls by this part, it is not stuck."""


@dataclass(frozen=True)
class Crops:
    """Crops of an image. The `n_big` big ones give assignments, and all crops predict them.

    Scales are fractions of the image's area.
    """

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
    """Settings of SwAV. Defaults are the paper's; `frozen_steps` -1 freezes the prototypes throughout."""

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


def make_crops(crops: Crops, preprocess: dict[str, Any]) -> SwaVTransform:
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
    """Turns embeddings into similarities to the prototypes. It is thrown away after training.

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
        """Give every prototype unit length again. Called before every step."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def project(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        """Project embeddings, and give the projections unit length."""
        centred = (z.float() - self.centre) / self.spread  # type: ignore[operator]
        return F.normalize(self.projection(centred).float(), dim=1)

    def forward(self, projected: Float[Tensor, "n p"]) -> Float[Tensor, "n k"]:
        """Similarities to the prototypes, in float32 under any autocast."""
        with torch.autocast(projected.device.type, enabled=False):
            return self.prototypes(projected.float())


class Swav(nn.Module):
    """The loss of a batch of crops, with a queue of earlier projections.

    `queue[c]` holds the last `queue` projections of big crop c on this process. Every step computes their similarities
    anew, with the present prototypes. The queue fills from `queue_from` of the run on, and is used once it is full.
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
        """Put the newest projections first; the oldest ones are dropped."""
        length = self.queue.shape[1]  # type: ignore[index]
        if length == 0 or progress < self.config.queue_from:
            return
        self.queue.copy_(torch.cat([projected, self.queue], dim=1)[:, :length])  # type: ignore[operator, list-item]
        self.queued.add_(projected.shape[1])  # type: ignore[operator]


class StuckAtUniform:
    """Says once, in words, when the loss stays at ln(K) or above: no crop then tells the prototype of another one."""

    def __init__(self, prototypes: int) -> None:
        self._uniform = math.log(prototypes)
        self._above: list[float] = []
        self._said = False

    def __call__(self, loss: float) -> str | None:
        """Take the loss of the next step; the warning, at the step from which it holds."""
        if self._said:
            return None
        self._above = [*self._above, loss][-STUCK_AFTER_STEPS:] if loss > STUCK_ABOVE * self._uniform else []
        if len(self._above) < STUCK_AFTER_STEPS or self._is_falling():
            return None
        self._said = True
        return (
            f"the loss has stayed at {loss:.3f}, not below ln(K) = {self._uniform:.3f}, for {STUCK_AFTER_STEPS} steps: "
            "the views of an image go to no prototype more than to another and nothing is learned. "
            "Try --set swav.epsilon=0.03, gentler crops "
            "(--set swav.crops.big_scale=[0.4,1.0]), --set swav.centre=true, prototypes frozen for longer "
            "(--set swav.frozen_steps=-1), a shorter queue or a lower learning rate. The run goes on."
        )

    def _is_falling(self) -> bool:
        third = max(1, len(self._above) // 3)
        first, last = sum(self._above[:third]), sum(self._above[-third:])
        return last < (1 - FALLING_BY) * first


@runtime_checkable
class SwavSettings(Protocol):
    """What SwAV reads of a recipe."""

    @property
    def swav(self) -> SwavConfig: ...


class SwavObjective:
    """SwAV as an `Objective`: no labels, crops of two sizes, prototypes that may be frozen."""

    head_name = "swav"
    needs_labels = False
    crop_setting = "swav.crops"
    left_behind = ("queue", "queued")  # projections of the other run's images

    def __init__(self, recipe: SwavSettings) -> None:
        self._config = recipe.swav

    @property
    def needs_calibration(self) -> bool:
        return self._config.centre

    @property
    def crop_sides_px(self) -> tuple[int, ...]:
        crops = self._config.crops
        return (crops.big_px, crops.small_px) if crops.n_small else (crops.big_px,)

    def require_images(self, n_images: int) -> None:
        if n_images < self._config.prototypes:
            raise InvalidData(
                f"{n_images} images are fewer than {self._config.prototypes} prototypes: --set swav.prototypes=..."
            )

    def make_transform(self, preprocess: dict[str, Any]) -> SwaVTransform:
        return make_crops(self._config.crops, preprocess)

    def make_head(self, n_features: int, n_classes: int, world_size: int) -> Swav:  # noqa: ARG002 (no labels)
        return Swav(n_features, self._config, world_size)

    def calibrate(self, head: Swav, z: Float[Tensor, "n d"]) -> None:
        """Centre and spread of the features; they are fixed for the run."""
        head.head.centre.copy_(z.mean(0))  # type: ignore[operator]
        head.head.spread.copy_(z.std(0).clamp_min(1e-6))  # type: ignore[operator]

    def compute_loss(self, head: Swav, embed: Embed, batch: Batch, progress: float) -> Tensor:
        head.head.normalise()
        n_big, n = self._config.crops.n_big, batch.views[0].shape[0]
        big = embed(torch.cat(batch.views[:n_big])).view(n_big, n, -1)
        small = batch.views[n_big:]
        low = embed(torch.cat(small)).view(len(small), n, -1) if small else big[:0]
        return cast("Tensor", head(big, low, progress))

    def before_step(self, head: Swav, step: int) -> None:
        """Frozen prototypes have no gradient."""
        if step < self._config.frozen_steps or self._config.frozen_steps < 0:
            head.head.prototypes.weight.grad = None

    def make_watch(self) -> Watch:
        return StuckAtUniform(self._config.prototypes)

    def export_head(self, head: Swav, classes: tuple[str, ...]) -> Head | None:  # noqa: ARG002 (it is thrown away)
        return None
