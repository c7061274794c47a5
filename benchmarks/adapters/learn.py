"""Learn one adapter with the project's SwAV learner: the same images, crops, head and steps for every kind.

Masks learn as `smn train` does, by SGD on scores. The other kinds take RMSprop with momentum in the same optimiser, so
that `lr` is what Adam calls so: their gradients differ by orders of magnitude between tensors, and plain SGD would
starve most of them. The head is the same for all, and learns by SGD.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.adapters.kinds import KINDS, serialise
from smn_core.backbone import load_backbone
from smn_core.files import write_bytes
from smn_core.maskfile import write_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.export import masked_weights
from training.calibrate import calibrate_head
from training.config import Config
from training.learner import Learner
from training.request import Request
from training.run import Prepared, build_learner, export_learned, fit, prepare

MASK = "mask"
LAST = 10
"""Steps at the end whose losses are averaged."""
SQUARES_KEPT = 0.99
"""Of the running mean of squared gradients, a step. Adam's .999 is for longer runs."""


@dataclass(frozen=True)
class Setting:
    """One way to learn an adapter of a kind."""

    kind: str
    lr: float
    rank: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind.replace(' ', '-')}-{self.rank}-{self.lr:g}" if self.rank else f"{self.kind}-{self.lr:g}"


@dataclass(frozen=True)
class Learned:
    """`weights` is a safetensors file of the plain model that the adapter means; `n_bytes` its own file's size.

    `changed` counts a mask's OFF weights, or the numbers that another adapter stores. `loss` is the mean of the end.
    """

    weights: Path
    n_bytes: int
    changed: int
    steps: int
    seconds: float
    loss: float


class AdapterLearner(Learner):
    """A `Learner` of which an adapter learns in place of all weights."""

    def __init__(self, prepared: Prepared, kind: str, rank: int) -> None:
        config = prepared.request.config
        super().__init__(
            prepared.backbone, config, config.total_steps(len(prepared.images.names)), seed=prepared.request.seed
        )
        self._kind, self._rank = kind, rank
        self._squares: list[Tensor] = []
        self._n_squares = 0

    def attach(self) -> None:
        """Put the adapter on the model. The head was measured before: an adapter starts as the untouched backbone."""
        KINDS[self._kind].attach(self.model, self._rank)
        self.register_buffer("gradient_scales", torch.zeros(len(self.learned())))
        self._squares = [torch.zeros_like(p) for p in self.learned()]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.global_step >= self.config.head_steps:
            self._divide_by_squares()

    @torch.no_grad()
    def _divide_by_squares(self) -> None:
        """Divide every gradient by the root of its running mean square, as Adam does; momentum is the optimiser's."""
        self._n_squares += 1
        share = 1 - SQUARES_KEPT**self._n_squares
        for parameter, squares in zip(self.learned(), self._squares, strict=True):
            if parameter.grad is not None:
                squares.lerp_(parameter.grad.square(), 1 - SQUARES_KEPT)
                root = (squares / share).sqrt_().add_(1e-12)
                parameter.grad.div_(root).mul_(1 - self.config.momentum)


def learn(spec: BackboneSpec, data: str, config: Config, setting: Setting, folder: Path, seed: int) -> Learned:
    """Learn an adapter and leave its file, and the weights that it means, in `folder`.

    Seconds are of this process's processor, over the steps alone: decoding, crops, forwards, gradients.

    Raises:
        SMNError: the recipe does not fit the images or the backbone.
    """
    is_mask = setting.kind == MASK
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{setting.name}.{'smn' if is_mask else 'safetensors'}"
    objective = "swav" if is_mask else "swav-finetune"
    config = replace(config, objective=objective, lr=setting.lr, lr_per_tensor=is_mask)
    prepared = prepare(Request(spec, data, config, out, seed=seed, overwrite=True, workers=0))
    learner = _build(prepared, setting)
    began = time.process_time()
    fitted = fit(prepared, learner, 0, lambda _: None)
    seconds = time.process_time() - began
    losses = [float(row["loss"]) for row in fitted.curve.rows][-LAST:]
    backbone = load_backbone(spec)
    if is_mask:
        mask = export_learned(prepared, learner, fitted.curve)
        assert mask is not None
        write_mask(replace(mask, metadata={}, preprocess=None), out, "context", backbone)
        weights = {name: torch.from_numpy(values) for name, values in masked_weights(backbone, mask).items()}
        changed = mask.n_off
    else:
        kind, theta = KINDS[setting.kind], backbone.model.state_dict()
        stored = kind.read(learner.model)
        write_bytes(out, serialise(stored))
        weights, changed = kind.merge(theta, stored), sum(values.size for values in stored.values())
    meant = weights_file(folder, setting.name)
    save_file({name: value.contiguous() for name, value in weights.items()}, meant)
    return Learned(meant, out.stat().st_size, changed, learner.total_steps, seconds, sum(losses) / len(losses))


def weights_file(folder: Path, name: str) -> Path:
    """Where the weights lie that the setting of this name means, once it is learned."""
    return folder / f"{name}.weights.safetensors"


def _build(prepared: Prepared, setting: Setting) -> Learner:
    if setting.kind == MASK:
        return build_learner(prepared)[0]
    learner = AdapterLearner(prepared, setting.kind, setting.rank)
    calibrate_head(learner, prepared.backbone, prepared.images)
    learner.attach()
    return learner
