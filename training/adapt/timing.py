"""Time one training step of each numeric form on this machine, and take the fastest that agrees with the others."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import set_fused_attn
from torch.nn.utils import parametrize

from smn_core.backbone import load_backbone
from smn_core.images import draft_side_px
from smn_core.imageset import ImageSet
from smn_core.precision import slow_on_cpu
from smn_core.spec import BackboneSpec
from training.adapt.look import Clock, Tell
from training.config import PRECISIONS, Config
from training.data import Batch, Item, Views
from training.learner import Learner

TIMED_STEPS = 2
IMAGES_A_STEP = 4
"""A step of so few images is timed, and its time is scaled to a batch."""
READ_IMAGES = 6
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
        found = _time(spec, form.apply(config), best.image_s if best is not None else math.inf, clock)
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


def choose_threads(
    spec: BackboneSpec, config: Config, device: torch.device, tell: Tell, clock: Clock = time.monotonic
) -> int:
    """Set torch's threads to what they are or to one, whichever takes a step faster; tell and return the number.

    As many threads as cores are several times slower than one where something else keeps a core busy.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1 or device.type != "cpu":
        return n_threads
    took: dict[int, float] = {}
    for n in (1, n_threads):
        torch.set_num_threads(n)
        found = _time(spec, config, min(took.values(), default=math.inf), clock)
        took[n] = found[0] if found is not None else math.inf
    fastest = min(took, key=lambda n: took[n])
    torch.set_num_threads(fastest)
    timed = ", ".join(f"{n}: {image_s * config.batch_size:.2f} s" for n, image_s in took.items())
    tell(f"torch's threads: {fastest} (a step of {config.batch_size} images with {timed})")
    return fastest


def time_step(
    form: Form,
    timed: Config,
    config: Config,
    images: ImageSet,
    preprocess: Mapping[str, Any],
    workers: int,
    clock: Clock = time.monotonic,
) -> float:
    """Seconds that a step of `config` is expected to take, reading and cropping included.

    Learning takes time in proportion to pixels, from the recipe that was `timed` in this form. Workers crop the next
    batch while the model learns from this one, where there is a core for them.
    """
    learn_s = form.image_s * _count_pixels(config) / _count_pixels(timed)
    views = Views(images, config.make_objective().make_transform(dict(preprocess)), draft_side_px(preprocess))
    n_read = min(READ_IMAGES, len(images.names))
    began = clock()
    for index in range(n_read):
        views[Item(index, seed=index)]
    read_s = (clock() - began) / n_read
    together = max(learn_s, read_s) if workers and (os.cpu_count() or 1) > 1 else learn_s + read_s
    return together * config.batch_size


def _count_pixels(config: Config) -> int:
    """Of all crops of an image."""
    crops = config.swav.crops
    return crops.n_big * crops.big_px**2 + crops.n_small * crops.small_px**2


def _faster(image_s: float, best: Form | None) -> bool:
    return best is None or image_s < best.image_s


def _name(form: Form) -> str:
    return f"{form.precision}{', fused attention' if form.fused_attention else ''}"


def _time(spec: BackboneSpec, config: Config, best_s: float, clock: Clock) -> tuple[float, float] | None:
    """Seconds an image and the loss; None where the processor has no instructions for the numbers."""
    set_fused_attn(config.fused_attention)  # attention asks for it when it is built
    backbone = load_backbone(spec)
    dtype = PRECISIONS[config.precision]
    if slow_on_cpu(dtype, backbone.device):
        return None
    n_images = min(IMAGES_A_STEP, config.batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner = Learner(backbone, replace(config, head_steps=0), total_steps=1).to(backbone.device)
        batch = _make_batch(config, n_images).to(backbone.device)
    learner.model.train()
    loss, took = _step(learner, batch, dtype, clock)
    if took <= TOO_SLOW * best_s * n_images:
        again = [_step(learner, batch, dtype, clock) for _ in range(TIMED_STEPS)]
        took = min(seconds for _, seconds in again)
    del learner, backbone
    gc.collect()
    return took / n_images, loss


def _make_batch(config: Config, n_images: int) -> Batch:
    crops = config.swav.crops
    sides = [crops.big_px] * crops.n_big + [crops.small_px] * crops.n_small
    return Batch([torch.randn(n_images, 3, side, side) for side in sides], None)


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
