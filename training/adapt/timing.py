"""How many threads a training step takes best, and how long a step of each candidate is expected to take."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from smn_core.images import draft_side_px
from smn_core.imageset import ImageSet
from smn_core.spec import BackboneSpec
from training.config import PLAIN, Config
from training.data import Item, Views
from training.forms import Form, time_form
from training.progress import Clock, Tell

READ_IMAGES = 6


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
        found = time_form(spec, replace(config, precision=PLAIN), min(took.values(), default=math.inf), clock)
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
