"""Start a run from the end of another one, with its scores, head and normalisation state. The schedule is new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from smn_core.backbone import Backbone
from smn_core.errors import InvalidWeights
from smn_core.maskfile import read_mask, with_bits
from smn_core.verbs.recorded import run_folder
from training import export
from training.checkpoints import CHECKPOINT, read_checkpoint
from training.config import Config, parse_config
from training.learner import Learner


def read_config(root: Path) -> Config:
    """Read the configuration that a mask was learned with from its run's checkpoint.

    Raises:
        InvalidWeights: the run does not lie beside the mask, or is damaged.
    """
    return parse_config(json.loads(_read_end(root)["smn"]["recipe"]))


def load(learner: Learner, backbone: Backbone, root: Path, root_state: Mapping[str, Tensor]) -> None:
    """Load into a fresh learner the state at the end of the run that wrote the mask `root`.

    The objective names state that is not loaded: SwAV's queue, for example, holds projections of that run's images.

    Raises:
        InvalidWeights: the run does not lie beside the mask, has another backbone or other shapes, or did not end with
            this mask.
    """
    path, checkpoint = run_folder(root) / CHECKPOINT, _read_end(root)
    if checkpoint["smn"].get("fingerprint") != learner.fingerprint:
        raise InvalidWeights(f"{path} was written by a run on another backbone")
    fresh = {f"{learner.objective.head_name}.{name}" for name in learner.objective.left_behind}
    state = {name: value for name, value in checkpoint["state_dict"].items() if name not in fresh}
    try:
        missing, extra = learner.load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes that differ
        raise InvalidWeights(f"{path} does not fit this recipe: {str(error).splitlines()[-1].strip()}") from error
    if odd := [*extra, *(name for name in missing if name not in fresh)]:
        raise InvalidWeights(f"{path} does not fit this recipe: {odd[0]}")
    mask = with_bits(read_mask(root, backbone.layout), backbone)
    ended = export.make_mask(backbone, learner.model, root_state, {}, recentred=learner.recentred)
    same_state = mask.state.keys() == ended.state.keys() and all(
        np.array_equal(values, ended.state[name]) for name, values in mask.state.items()
    )
    if not np.array_equal(mask.packed, ended.packed) or not same_state:
        raise InvalidWeights(f"{path} is not the end of the run that wrote {root}: finish it with smn train --resume")


def _read_end(root: Path) -> dict[str, Any]:
    """The checkpoint of the run that wrote a mask.

    Raises:
        InvalidWeights: there is none, or it is damaged.
    """
    path = run_folder(root) / CHECKPOINT
    if not path.exists():
        raise InvalidWeights(f"there is no checkpoint {path}: {_say_what_has_one(root)}")
    return read_checkpoint(path)


def _say_what_has_one(root: Path) -> str:
    """The fix where no checkpoint lies beside a mask. `smn adapt` keeps its runs, with their masks, in FILE.run/."""
    runs = sorted(run_folder(root).glob("*.run"))
    masks = [str(run.with_suffix(".smn")) for run in runs if (run / CHECKPOINT).exists()]
    if masks:
        return f"smn adapt wrote {root}; take the mask of its run, {' or '.join(masks)}, or learn one with smn train"
    if runs:
        return f"smn adapt wrote {root} and kept no run that switches a weight off; learn a mask with smn train"
    return f"keep {run_folder(root)} of smn train beside {root}, or learn a mask with smn train"
