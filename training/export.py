"""What was learned -> a mask, or for the fine-tuning objectives ordinary weights."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from smn_core import bits
from smn_core.backbone import Backbone
from smn_core.mask import Head, TaskMask
from training import masking
from training.recentre import Recentred
from training.supervised import Classifier


def plain_name(name: str) -> str:
    """A parametrized tensor's name in the plain model: `a.parametrizations.weight.original` -> `a.weight`."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model as timm knows it: theta under its own names, no scores."""
    return {
        plain_name(name): value for name, value in model.state_dict().items() if not name.endswith((".scores", ".kept"))
    }


def to_mask(
    backbone: Backbone,
    model: nn.Module,
    root_state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    classifier: Classifier | None = None,
    classes: tuple[str, ...] = (),
    recentred: Recentred | None = None,
) -> TaskMask:
    """The mask that the scores mean, with the normalisation statistics that training changed.

    Args:
        backbone: whose identity the mask carries.
        model: with scores attached; tensors without scores are all ON.
        root_state: the running statistics before training, by buffer name.
        classifier: where there is one, its effective weights go with the mask.
        classes: their names.
        recentred: the norms that were unfolded, where they were.

    Raises:
        InvalidMask: a tensor has no ON weight left.
    """
    learned = {name: scores.on() for name, scores in masking.attached(model)}
    packed = [
        bits.pack(learned[t.name].cpu().numpy().reshape(-1) if t.name in learned else np.ones(t.n_weights, np.bool_))
        for t in backbone.layout
    ]
    return TaskMask(
        layout=backbone.layout,
        model=backbone.model_json,
        fingerprint=backbone.fingerprint,
        packed=np.concatenate(packed),
        state=changed_state(model, root_state, recentred),
        head=_head_of(classifier, classes),
        preprocess=json.loads(json.dumps(backbone.preprocess)),
        metadata=metadata,
    )


def changed_state(
    model: nn.Module, root_state: Mapping[str, Tensor], recentred: Recentred | None = None
) -> dict[str, ndarray]:
    """Running statistics that differ from the root's, in the backbone's own terms."""
    now = plain_state(model) | (recentred.folded() if recentred is not None else {})
    return {
        name: now[name].float().cpu().numpy().copy()
        for name, before in root_state.items()
        if not torch.equal(now[name].cpu(), before)
    }


def running_state(backbone: Backbone) -> dict[str, Tensor]:
    """A copy of a backbone's running statistics."""
    state = backbone.model.state_dict()
    return {name: state[name].detach().cpu().clone() for name in backbone.layout.buffers}


def _head_of(classifier: Classifier | None, classes: tuple[str, ...]) -> Head | None:
    if classifier is None:
        return None
    weight, bias = classifier.linear.weight.detach(), classifier.linear.bias.detach()
    return Head(weight.float().cpu().numpy(), bias.float().cpu().numpy(), classes)
