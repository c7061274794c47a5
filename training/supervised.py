"""Cross-entropy on labels, for the scores of a mask (the paper's supervised mask) or for all weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision import transforms as T

from training.masking import MaskRule, Scores


def transform_for(scale: tuple[float, float], preprocess: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
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
    """Cross-entropy of a linear classifier on embeddings.

    `masked`: its weights are random and fixed, and their mask is learned, as in the paper; else it is ordinary.
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
