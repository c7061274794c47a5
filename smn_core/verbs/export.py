"""theta' and state of a mask as ordinary timm weights: check it elsewhere, or leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import ndarray
from timm.models import create_model

from smn_core import tensorfile
from smn_core.backbone import Backbone
from smn_core.engine.apply import apply_slowly
from smn_core.errors import InvalidArgument, InvalidMask
from smn_core.files import write_bytes
from smn_core.mask import TaskMask
from smn_core.maskfile import check_fits


def masked_weights(backbone: Backbone, mask: TaskMask) -> dict[str, ndarray]:
    """The state dict of a plain timm model (`num_classes=0`) that embeds as the backbone does through `mask`.

    `backbone` is float32 on the CPU and not owned by an engine.

    Raises:
        WrongBackbone: the mask was made for another backbone.
    """
    check_fits(mask, backbone)
    weights = {name: tensor.numpy().copy() for name, tensor in backbone.model.state_dict().items()}
    theta = np.zeros(mask.layout.n_elements, np.float32)
    for tensor in mask.layout:
        theta[tensor.elements] = weights[tensor.name].reshape(-1)
    masked = apply_slowly(theta, mask)
    for tensor in mask.layout:
        weights[tensor.name] = masked[tensor.elements].reshape(tensor.shape)
    weights.update({name: np.ascontiguousarray(values) for name, values in mask.state.items()})
    return weights


def head_weights(backbone: Backbone, mask: TaskMask) -> dict[str, ndarray]:
    """The mask's classifier under timm's names for it, for a model built with `num_classes=C`.

    Raises:
        InvalidMask: the mask has no head, or the architecture has no single linear classifier.
    """
    if mask.head is None:
        raise InvalidMask("the mask has no head to export")
    n_classes = len(mask.head.classes)
    model = create_model(backbone.architecture, num_classes=n_classes, **backbone.args)
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if not isinstance(classifier, str) or shapes.get(f"{classifier}.weight") != mask.head.weight.shape:
        raise InvalidMask(f"{backbone.architecture} has no single linear classifier to put the head in")
    return {f"{classifier}.weight": mask.head.weight, f"{classifier}.bias": mask.head.bias}


def export(backbone: Backbone, mask: TaskMask, out: Path, *, with_head: bool = False) -> None:
    """Write the weights as a safetensors file that loads into plain timm with `strict=True`.

    Raises:
        InvalidArgument: another suffix.
        WrongBackbone, InvalidMask: as `masked_weights` and `head_weights`.
    """
    if out.suffix != ".safetensors":
        raise InvalidArgument(f"--out {out}: a safetensors file is written, so name it .safetensors")
    weights = masked_weights(backbone, mask)
    if with_head:
        weights |= head_weights(backbone, mask)
    metadata = {"format": "pt", "model": mask.model, "mask": mask.digest or ""}
    write_bytes(out, tensorfile.serialise_tensors(weights, metadata))
