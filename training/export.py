"""Turn what was learned into a mask, or after fine-tuning into ordinary weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from smn_core import bits
from smn_core.backbone import Backbone
from smn_core.mask import Head, TaskMask
from training import masking
from training.recentre import Recentred


def name_plainly(name: str) -> str:
    """The name in the plain model of a parametrized tensor: `a.parametrizations.weight.original` -> `a.weight`."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def collect_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain timm model: theta under its own names, without scores."""
    return {
        name_plainly(name): value
        for name, value in model.state_dict().items()
        if not name.endswith((".scores", ".kept"))
    }


def make_mask(
    backbone: Backbone,
    model: nn.Module,
    root_state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    head: Head | None = None,
    recentred: Recentred | None = None,
) -> TaskMask:
    """Make the mask from the scores, with the running statistics that training changed.

    Args:
        backbone: the mask names its model, fingerprint and preprocessing.
        model: with scores attached. Tensors without scores are all ON.
        root_state: the running statistics before training, by buffer name.
        head: the classifier that goes with the mask, where there is one.
        recentred: the norms that were unfolded, where they were.

    Raises:
        InvalidMask: a tensor has no ON weight left.
    """
    learned = {name: scores.on() for name, scores in masking.list_scores(model)}
    packed = [
        bits.pack(learned[t.name].cpu().numpy().reshape(-1) if t.name in learned else np.ones(t.n_weights, np.bool_))
        for t in backbone.layout
    ]
    return TaskMask(
        layout=backbone.layout,
        model=backbone.model_json,
        fingerprint=backbone.fingerprint,
        packed=np.concatenate(packed),
        state=collect_changed_statistics(model, root_state, recentred),
        head=head,
        preprocess=copy_pixels(backbone),
        metadata=metadata,
    )


def copy_pixels(backbone: Backbone) -> dict[str, Any]:
    """What the backbone does to pixels, as a mask's file keeps it: plain JSON, lists in place of tuples."""
    return dict(json.loads(json.dumps(dict(backbone.preprocess))))


def collect_changed_statistics(
    model: nn.Module, root_state: Mapping[str, Tensor], recentred: Recentred | None = None
) -> dict[str, ndarray]:
    """The running statistics that differ from the root's, for the backbone's own weights and biases."""
    now = collect_weights(model) | (recentred.folded() if recentred is not None else {})
    return {
        name: now[name].float().cpu().numpy().copy()
        for name, before in root_state.items()
        if not torch.equal(now[name].cpu(), before)
    }


def copy_statistics(backbone: Backbone) -> dict[str, Tensor]:
    """Copy the running statistics of a backbone."""
    state = backbone.model.state_dict()
    return {name: state[name].detach().cpu().clone() for name in backbone.layout.buffers}
