"""Check a run before its first step, and write down what must be equal when it is resumed: its plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from smn_core.backbone import Backbone
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.imageset import ImageSet
from smn_core.verbs.recorded import require_places
from training import masking
from training.checkpoints import CHECKPOINT, README
from training.config import AUTO, PLAIN
from training.data import Subset, open_split
from training.identity import identify
from training.labels import pick_labels, say_why_unlabelled
from training.request import Request
from training.sizing import PROTOTYPES, fit_to

PLAN, PUSHED = "plan.json", "pushed.json"
Plan = dict[str, Any]
"""What decides a run, as JSON. A run is resumed only under an equal plan."""


def make_plan(request: Request, backbone: Backbone) -> tuple[Plan, int]:
    """The plan of a request and the number of its steps. Nothing is written.

    A form that is left open is no part of it: it stands there as float32, which it was before it could be open.

    Raises:
        SMNError: as `train` before the first step.
    """
    require_output(request)
    if request.config.learns_mask:
        masking.choose_tensors(backbone.layout, request.config.mask)
    request, images, _ = choose_images(request)
    plan = {
        "fingerprint": backbone.fingerprint,
        "preprocess": dict(backbone.preprocess),
        "recipe": asdict(request.config) | ({"precision": PLAIN} if request.config.precision == AUTO else {}),
        "images": identify(images),
        "split": request.split,
        "labels": request.labels,
        "seed": request.seed,
        "start": request.start_digest or None,
    }
    return json.loads(json.dumps(plan)), request.config.total_steps(len(images.names))


def require_same(path: Path, plan: Mapping[str, Any], what: Path) -> None:
    """Compare a plan with the file that an earlier start of `what` wrote.

    Raises:
        InvalidArgument: the plans differ, or the file is damaged.
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
    """Remove the files that mark an earlier run of this name as begun or finished. Its output stays until replaced."""
    for name in (CHECKPOINT, PLAN, PUSHED, README):
        (request.folder / name).unlink(missing_ok=True)


def require_output(request: Request) -> None:
    """Check the output: its suffix fits, it can be written, and no earlier run is overwritten unasked.

    Raises:
        InvalidArgument: one of these does not hold.
    """
    wanted = ".smn" if request.config.learns_mask else ".safetensors"
    if request.out.suffix != wanted:
        raise InvalidArgument(f"--out {request.out}: objective {request.config.objective} writes a {wanted} file")
    require_places(request.out)
    begun = (request.folder / CHECKPOINT).exists() or request.out.exists()
    if begun and not request.resume and not request.overwrite:
        raise InvalidArgument(f"{request.out} or its run exists: continue it with --resume, or say --overwrite")


def choose_images(request: Request) -> tuple[Request, ImageSet, list[str]]:
    """Open the images that a run learns from, and fit the recipe's sizes to their number where the request allows it.

    Returns:
        The request with the sizes that fit, the images, and a remark for each size that was lowered.

    Raises:
        InvalidData, InvalidArgument: there are none, or too few for the recipe, or its objective lacks labels.
    """
    images = open_split(request.data, request.split)
    if request.only is not None:
        images = Subset(images, np.array(request.only, np.int64))
    config, objective = request.config, request.config.make_objective()
    if objective.needs_labels:
        labels = images.labels
        if labels is None:
            why = say_why_unlabelled(images) or f": {request.data} has no class folders"
            raise InvalidData(f"objective {config.objective} needs labels{why}")
        if len(np.unique(labels)) < 2:
            raise InvalidData(f"objective {config.objective} needs at least two classes, {request.data} has one")
        if request.labels is not None:
            images = Subset(images, pick_labels(labels, request.labels, request.seed, images.classes))
    elif request.labels is not None:
        raise InvalidArgument(f"--labels is for objectives with labels; {config.objective} uses none")
    n_images, remarks = len(images.names), list[str]()
    if request.fixed is not None:
        # A run that goes on from another takes over its head with the prototypes.
        keep = (*request.fixed, *([PROTOTYPES] if request.start is not None else []))
        config, remarks = fit_to(config, n_images, keep)
        request, objective = replace(request, config=config), config.make_objective()
    total = config.total_steps(n_images)
    if 0 < total <= config.head_steps and config.learns_mask:
        raise InvalidArgument(
            f"all {total} steps are for the head alone (head_steps is {config.head_steps}), no weight would be "
            "switched off: --set head_steps=..., or more steps"
        )
    if n_images < config.batch_size:
        raise InvalidData(f"{n_images} images do not fill one batch of {config.batch_size}: --set batch_size=...")
    # A run that goes on from another takes over its head, and needs no more images than a batch.
    if request.start is None:
        objective.require_images(n_images)
    return request, images, remarks
