"""Learning from labels: cross-entropy of a linear classifier on embeddings (the paper's supervised mask)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision import transforms as T

from smn_core.mask import Head
from training.data import Batch
from training.masking import MaskRule, Scores
from training.objective import Embed, Watch


def make_crop(scale: tuple[float, float], preprocess: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    """PIL RGB -> one random resized crop, flipped half the time, normalised."""
    return T.Compose(
        [
            T.RandomResizedCrop(preprocess["input_size"][-1], scale=scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(preprocess["mean"], preprocess["std"]),
        ]
    )


class Classifier(nn.Module):
    """A linear classifier and its cross-entropy.

    `masked`: as in the paper its weights are random and fixed, and a mask of them is learned. Otherwise they learn.
    """

    def __init__(self, n_features: int, n_classes: int, *, masked: bool, rule: MaskRule) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, n_classes)
        if masked:
            self.linear.requires_grad_(False)
            scores = Scores(self.linear.weight.detach(), MaskRule(rule.init, rule.threshold), None)
            parametrize.register_parametrization(self.linear, "weight", scores, unsafe=True)

    def forward(self, z: Float[Tensor, "n d"], labels: Int64[Tensor, "n"]) -> Tensor:
        """Scalar mean loss."""
        return F.cross_entropy(self.linear(z).float(), labels)


@runtime_checkable
class SupervisedSettings(Protocol):
    """What learning from labels reads of a recipe."""

    @property
    def mask(self) -> MaskRule: ...

    @property
    def masked_head(self) -> bool: ...

    @property
    def crop_scale(self) -> tuple[float, float]: ...


class SupervisedObjective:
    """Cross-entropy as an `Objective`: it needs labels, and its classifier goes into the mask file."""

    head_name = "classifier"
    needs_labels = True
    needs_calibration = False
    crop_sides_px = ()
    crop_setting = "crop_scale"
    left_behind = ()

    def __init__(self, recipe: SupervisedSettings) -> None:
        self._recipe = recipe

    def require_images(self, n_images: int) -> None:
        """Any number will do."""

    def make_transform(self, preprocess: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        return make_crop(self._recipe.crop_scale, preprocess)

    def make_head(self, n_features: int, n_classes: int, world_size: int) -> Classifier:  # noqa: ARG002
        return Classifier(n_features, n_classes, masked=self._recipe.masked_head, rule=self._recipe.mask)

    def calibrate(self, head: Classifier, z: Float[Tensor, "n d"]) -> None:
        """Nothing to measure."""

    def compute_loss(self, head: Classifier, embed: Embed, batch: Batch, progress: float) -> Tensor:  # noqa: ARG002
        assert batch.labels is not None
        return cast("Tensor", head(embed(batch.views[0]), batch.labels))

    def before_step(self, head: Classifier, step: int) -> None:
        """All gradients stay."""

    def make_watch(self) -> Watch:
        return lambda _: None

    def export_head(self, head: Classifier, classes: tuple[str, ...]) -> Head | None:
        """The effective weights: those of a masked classifier are under its mask."""
        weight, bias = head.linear.weight.detach(), head.linear.bias.detach()
        return Head(weight.float().cpu().numpy(), bias.float().cpu().numpy(), classes)
