"""The form of a training step: precision and attention. Each is timed here, and the fastest that agrees is taken."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from timm.layers import set_fused_attn
from torch.nn.utils import parametrize

from smn_core.backbone import load_backbone
from smn_core.precision import slow_on_cpu
from smn_core.spec import BackboneSpec
from training.checkpoints import read_checkpoint
from training.config import AUTO, PLAIN, PRECISIONS, Config, parse_config
from training.data import Batch
from training.learner import Learner
from training.progress import Clock, Tell
from training.request import Request

WORTH_TIMING = 60
"""A run of fewer steps ends before timing them pays."""
BOUND_S = 60.0
"""For all timing of a run."""
TIMED_STEPS, N_CLASSES = 2, 2
TIMED_PIXELS = 200_000
FEWEST_TIMED, MOST_TIMED = 4, 16
"""A step is timed with as many images as have so many pixels in their crops, and its time is scaled to a batch. With
fewer pixels the scores of the mask would take most of the time, and all forms would look alike."""
FORMS: tuple[tuple[str, bool], ...] = (
    ("32-true", True), ("bf16-mixed", False), ("32-true", False), ("bf16-mixed", True),
)  # fmt: skip
"""Precision, and whether attention is fused, in the order in which they are timed."""
FORMS_IN_ANY_CASE = 2
TOO_SLOW = 2.0
"""A form whose first step takes so many times the best one's is left at that."""
AGREES = 0.05
"""Part of the first form's loss by which another one's may differ: bfloat16 has 8 bits."""


@dataclass(frozen=True)
class Form:
    """Numbers and attention of a training step, and the time that it takes for one image, in seconds."""

    precision: str
    fused_attention: bool
    image_s: float

    def apply(self, config: Config) -> Config:
        """The recipe in this form."""
        return replace(config, precision=self.precision, fused_attention=self.fused_attention)


def settle_form(request: Request, n_images: int, checkpoint: Path | None, world: int) -> tuple[Request, str]:
    """The request with its `precision` said, where the recipe leaves it open (`auto`), and a remark on what was taken.

    A run that goes on keeps the form that it began with. A short run, and one of several processes, is float32.
    """
    config, told = request.config, list[str]()
    if config.precision != AUTO:
        return request, ""
    if checkpoint is not None:
        begun = parse_config(
            json.loads(read_checkpoint(checkpoint, mend="; say --overwrite to begin anew")["smn"]["recipe"])
        )
        form = Form(begun.precision, begun.fused_attention, math.inf)
    elif world > 1 or config.total_steps(n_images) < WORTH_TIMING:
        form = Form(PLAIN, config.fused_attention, math.inf)
    else:
        form = choose_form(request.spec, config, BOUND_S, told.append)
    return replace(request, config=form.apply(config)), "".join(told)


def choose_form(spec: BackboneSpec, config: Config, bound_s: float, tell: Tell, clock: Clock = time.monotonic) -> Form:
    """Time a step of `config` in every form, as long as `bound_s` seconds allow; tell and return the fastest.

    A form counts if its loss is finite and agrees with that of the first. The first two are timed in any case: the
    second is the fastest on processors with bfloat16, and on a slow one it matters most.
    """
    until, best, reference = clock() + bound_s, None, math.nan
    timed: list[str] = []
    for place, (precision, fused) in enumerate(FORMS):
        if place >= FORMS_IN_ANY_CASE and clock() > until:
            break
        form = Form(precision, fused, math.inf)
        found = time_form(spec, form.apply(config), best.image_s if best is not None else math.inf, clock)
        if found is None:
            continue
        image_s, loss = found
        reference = loss if best is None else reference
        timed.append(f"{_name(form)} {image_s * config.batch_size:.2f} s")
        if math.isfinite(loss) and abs(loss - reference) <= AGREES * abs(reference) and _faster(image_s, best):
            best = replace(form, image_s=image_s)
    if best is None:  # not even float32 gives a finite loss: the run will say what is wrong
        best = Form("32-true", True, 1.0)
    tell(f"a step of {config.batch_size} images: {', '.join(timed)}; taken: {_name(best)}")
    return best


def _faster(image_s: float, best: Form | None) -> bool:
    return best is None or image_s < best.image_s


def _name(form: Form) -> str:
    return f"{form.precision}{', fused attention' if form.fused_attention else ''}"


def time_form(spec: BackboneSpec, config: Config, best_s: float, clock: Clock) -> tuple[float, float] | None:
    """Seconds an image and the loss; None where the processor has no instructions for the numbers."""
    set_fused_attn(config.fused_attention)  # attention asks for it when it is built
    backbone = load_backbone(spec)
    dtype = PRECISIONS[config.precision]
    if slow_on_cpu(dtype, backbone.device):
        return None
    sides_px = _list_crops(config, int(backbone.preprocess["input_size"][-1]))
    fitting = TIMED_PIXELS // sum(side**2 for side in sides_px)
    n_images = min(config.batch_size, max(FEWEST_TIMED, min(MOST_TIMED, fitting)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner = Learner(backbone, replace(config, head_steps=0), 1, N_CLASSES).to(backbone.device)
        batch = _make_batch(sides_px, n_images).to(backbone.device)
    learner.model.train()
    loss, took = _step(learner, batch, dtype, clock)
    if took <= TOO_SLOW * best_s * n_images:
        again = [_step(learner, batch, dtype, clock) for _ in range(TIMED_STEPS)]
        took = min(seconds for _, seconds in again)
    del learner, backbone
    gc.collect()
    return took / n_images, loss


def _make_batch(sides_px: Sequence[int], n_images: int) -> Batch:
    return Batch([torch.randn(n_images, 3, side, side) for side in sides_px], torch.arange(n_images) % N_CLASSES)


def _list_crops(config: Config, side_px: int) -> list[int]:
    """The sides of all crops of an image: those of SwAV, or the one of a classifier."""
    if config.make_objective().needs_labels:
        return [side_px]
    crops = config.swav.crops
    return [crops.big_px] * crops.n_big + [crops.small_px] * crops.n_small


def _step(learner: Learner, batch: Batch, dtype: torch.dtype, clock: Clock) -> tuple[float, float]:
    """Loss and seconds of one step, forwards and backwards."""
    began = clock()
    learner.zero_grad()
    on = learner.device.type
    with parametrize.cached(), torch.autocast(on, dtype, enabled=dtype != torch.float32):
        loss = learner.compute_loss(batch)
    loss.backward()
    value = loss.item()  # a GPU has finished once its value is here
    return value, clock() - began
