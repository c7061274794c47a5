"""What can be known of a run before its first step: that it can work, and what another start of it must agree in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smn_core.backbone import Backbone
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.imageset import ImageSet
from training import masking
from training.checkpoints import CHECKPOINT, README
from training.config import MASKS
from training.data import Subset, identity, open_split
from training.labels import pick_labels
from training.request import Request

PLAN, PUSHED = "plan.json", "pushed.json"
Plan = dict[str, Any]


def plan_of(request: Request, backbone: Backbone) -> tuple[Plan, int]:
    """What the run of `request` must agree in when it is resumed, as JSON, and its steps; nothing is written.

    Raises:
        SMNError: what `train` would raise before the first step.
    """
    require_output(request)
    require_float32(backbone)
    if request.config.objective in MASKS:
        masking.taken(backbone.layout, request.config.mask)
    images = images_of(request)
    plan = {
        "fingerprint": backbone.fingerprint,
        "preprocess": dict(backbone.preprocess),
        "recipe": asdict(request.config),
        "images": identity(images),
        "split": request.split,
        "labels": request.labels,
        "seed": request.seed,
        "start": request.start_digest or None,
    }
    return json.loads(json.dumps(plan)), request.config.total_steps(len(images.names))


def require_same(path: Path, plan: Mapping[str, Any], what: Path) -> None:
    """Compare with the plan that an earlier start of `what` wrote.

    Raises:
        InvalidArgument: they differ, or the file is damaged.
    """
    try:
        theirs = json.loads(path.read_text())
        differs = [key for key in plan if theirs.get(key) != plan[key]]
    except (ValueError, AttributeError) as error:
        raise InvalidArgument(f"{path} is damaged: say --overwrite to begin {what} anew") from error
    if differs:
        raise InvalidArgument(
            f"{what} was begun with another {differs[0]}: resume with the same options, or say --overwrite"
        )


def forget(request: Request) -> None:
    """Drop what would make an earlier run of this name count as begun or finished; its output stays until replaced."""
    for name in (CHECKPOINT, PLAN, PUSHED, README):
        (request.folder / name).unlink(missing_ok=True)


def require_output(request: Request) -> None:
    """The output is named as what it is, in a folder that is there, and writes over no earlier run unasked.

    Raises:
        InvalidArgument: it is not.
    """
    wanted = ".smn" if request.config.objective in MASKS else ".safetensors"
    if request.out.suffix != wanted:
        raise InvalidArgument(f"--out {request.out}: objective {request.config.objective} writes a {wanted} file")
    if not request.out.parent.is_dir():
        raise InvalidArgument(f"--out {request.out}: the folder {request.out.parent} does not exist")
    begun = (request.folder / CHECKPOINT).exists() or request.out.exists()
    if begun and not request.resume and not request.overwrite:
        raise InvalidArgument(f"{request.out} or its run exists: continue it with --resume, or say --overwrite")


def require_float32(backbone: Backbone) -> None:
    """Raises InvalidArgument: scores move by less than a shorter type can tell."""
    if backbone.dtype != torch.float32:
        raise InvalidArgument(f"--dtype {backbone.dtype}: training keeps float32 weights; set precision=bf16-mixed")


def images_of(request: Request) -> ImageSet:
    """The images that a run learns from.

    Raises:
        InvalidData, InvalidArgument: there are none, too few for the recipe, or labels that it needs are missing.
    """
    images = open_split(request.data, request.split)
    if request.only is not None:
        images = Subset(images, np.array(request.only, np.int64))
    config = request.config
    if config.objective in ("supervised", "finetune"):
        labels = images.labels
        if labels is None:
            raise InvalidData(f"objective {config.objective} needs labels: {request.data} has no class folders")
        if len(np.unique(labels)) < 2:
            raise InvalidData(f"objective {config.objective} needs at least two classes, {request.data} has one")
        if request.labels is not None:
            images = Subset(images, pick_labels(labels, request.labels, request.seed, images.classes))
    elif request.labels is not None:
        raise InvalidArgument(f"--labels is for objectives with labels; {config.objective} uses none")
    n_images = len(images.names)
    total = config.total_steps(n_images)
    if 0 < total <= config.head_steps and config.objective in MASKS:
        raise InvalidArgument(
            f"all {total} steps are for the head alone (head_steps is {config.head_steps}), no weight would be "
            "switched off: --set head_steps=..., or more steps"
        )
    if n_images < config.batch_size:
        raise InvalidData(f"{n_images} images do not fill one batch of {config.batch_size}: --set batch_size=...")
    # A run that goes on from another has its prototypes, however few images it has of its own.
    if request.start is None and config.objective in ("swav", "swav-finetune") and n_images < config.swav.prototypes:
        raise InvalidData(
            f"{n_images} images are fewer than {config.swav.prototypes} prototypes: --set swav.prototypes=..."
        )
    return images
