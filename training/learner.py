"""One step of learning, for any objective: the LightningModule that owns model, head and optimiser."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from timm.layers import Format, convert_sync_batchnorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from smn_core.backbone import Backbone
from smn_core.errors import InvalidWeights
from training import masking
from training.config import Config
from training.data import Batch
from training.recentre import Recentred


class Learner(pl.LightningModule):
    """Learns the scores of a backbone's mask, or all its weights.

    Args:
        backbone: float32; its model is taken over.
        config: the recipe.
        total_steps: length of the schedule.
        n_classes: for the objectives with labels.
        world_size: processes that share a batch.
        seed: of the run. A run that resumes a checkpoint has the same seed, images and start.
        images: digest of the images that the run learns from.
        start: digest of the mask that the run goes on from, or "".
        sync_norm: normalise by the rows of all processes, which torch can do on GPUs alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: Config,
        total_steps: int,
        n_classes: int = 0,
        world_size: int = 1,
        seed: int = 0,
        images: str = "",
        start: str = "",
        sync_norm: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.total_steps, self.world_size = config, total_steps, world_size
        self.seed, self.images, self.start, self.fingerprint = seed, images, start, backbone.fingerprint
        # timm's conversion, not Lightning's: it keeps the activations that timm puts inside norms. Masks come after it.
        self.model = convert_sync_batchnorm(backbone.model) if sync_norm else backbone.model
        accept_any_size(self.model)
        self.objective = config.make_objective()
        if config.learns_mask:
            masking.attach(self.model, backbone.layout, config.mask)
        else:
            self.model.requires_grad_(True)
        # The head has the objective's own name, so the keys of a checkpoint do not depend on this class.
        self.add_module(self.objective.head_name, self.objective.make_head(backbone.n_features, n_classes, world_size))
        self.recentred: Recentred | None = None
        # 1 / root mean square of the first gradient of each tensor; 0 before that gradient came.
        self.register_buffer("gradient_scales", torch.zeros(len(self.learned())))
        self.skipped: dict[str, None] = {}

    def learned(self) -> list[nn.Parameter]:
        """The parameters of the model that learn: the scores, or all weights."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def head(self) -> nn.Module:
        """The objective's own part, which turns embeddings into a loss."""
        return self.get_submodule(self.objective.head_name)

    def head_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.head.parameters() if p.requires_grad]

    def training_step(self, batch: Batch, _: int) -> Tensor:
        with parametrize.cached():
            loss = self.compute_loss(batch)
        self.skipped.update(dict.fromkeys(batch.skipped))
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def compute_loss(self, batch: Batch) -> Tensor:
        """The objective's scalar loss at this step."""
        return self.objective.compute_loss(self.head, self.embed, batch, self.global_step / self.total_steps)

    def embed(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Embed crops of one size.

        While only the head learns, the model needs no gradient. Under DDP it computes one all the same, because DDP
        waits for the gradient of every parameter.
        """
        with torch.set_grad_enabled(self.global_step >= self.config.head_steps or self.world_size > 1):
            return cast("Tensor", self.model(x))

    def on_train_start(self) -> None:
        """Check that all processes begin at the same step: otherwise they would wait for each other for ever.

        Raises:
            InvalidWeights: the steps differ, because not all processes see the same checkpoint.
        """
        if self.world_size > 1:
            here = torch.tensor(self.global_step, device=self.device)
            steps = cast("Tensor", self.all_gather(here)).tolist()
            if len(set(steps)) > 1:
                raise InvalidWeights(
                    f"the processes resume from steps {steps}: --out must lie in a folder that all nodes share"
                )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        self.set_modes()

    def set_modes(self) -> None:
        """Let the model learn: norms normalise by the batch, unless the recipe freezes them."""
        self.model.train()
        if self.config.freeze_norm:
            for module in self.model.modules():
                if "running_mean" in module._buffers:
                    module.eval()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        step, learned = self.global_step, self.learned()
        if step < self.config.head_steps:
            for parameter in learned:
                parameter.grad = None
        elif self.config.lr_per_tensor:
            self._scale_gradients(learned)
        self.objective.before_step(self.head, step)

    @torch.no_grad()
    def _scale_gradients(self, learned: list[nn.Parameter]) -> None:
        scales = cast("Tensor", self.gradient_scales)
        if not scales.any():
            squares = [p.grad.square().mean() if p.grad is not None else scales.new_zeros(()) for p in learned]
            scales.copy_(torch.stack(squares).sqrt().clamp_min(1e-20).reciprocal())
        for parameter, scale in zip(learned, scales, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(scale)

    def configure_optimizers(self) -> Any:
        config = self.config
        groups = [
            {"params": self.learned(), "lr": config.lr, "weight_decay": config.weight_decay},
            {"params": self.head_parameters(), "lr": config.head_lr, "weight_decay": config.head_weight_decay},
        ]
        optimiser = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
        factors = (self._schedule, self._head_schedule)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, [_as_function(f) for f in factors])
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _schedule(self, step: int) -> float:
        """Factor of `lr`: a warm-up and a cosine over the steps after `head_steps`."""
        start = self.config.head_steps
        n_warm = round(self.config.warmup * (self.total_steps - start))
        return warmup_cosine(max(0, step - start), self.total_steps - start, n_warm)

    def _head_schedule(self, step: int) -> float:
        return warmup_cosine(step, self.total_steps, round(self.config.warmup * self.total_steps))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["smn"] = self.identity()

    def identity(self) -> dict[str, str]:
        """What must be equal in a checkpoint and in the run that resumes it."""
        recipe = json.dumps(asdict(self.config), sort_keys=True)
        return {
            "fingerprint": self.fingerprint,
            "recipe": recipe,
            "steps": str(self.total_steps),
            "seed": str(self.seed),
            "images": self.images,
            **({"start": self.start} if self.start else {}),
        }


def accept_any_size(model: nn.Module) -> None:
    """Let a ViT take crops of several sizes, as timm's `dynamic_img_size=True` does. No weight changes."""
    if isinstance(model, VisionTransformer):
        embed = model.patch_embed
        embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
        model.dynamic_img_size = True  # type: ignore[misc]


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor of the learning rate: `(step + 1) / warmup` first, then half a cosine, which reaches 0 at step `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _as_function(factor: Callable[[int], float]) -> Callable[[int], float]:
    """A plain function: of any other callable, a method too, a schedule keeps the attributes in the checkpoint."""
    return lambda step: factor(step)  # noqa: PLW0108 - the point is that it is not `factor` itself
