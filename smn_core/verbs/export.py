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
from smn_core.maskfile import check_fits, with_bits

FORMATS = ("safetensors", "onnx")
"""What `smn export` writes: this module's weights, or the graph of `onnxfile.py`."""


def masked_weights(backbone: Backbone, mask: TaskMask) -> dict[str, ndarray]:
    """The state dict of a plain timm model (`num_classes=0`) that embeds as the backbone does through `mask`.

    `backbone` is float32 on the CPU and not owned by an engine.

    Raises:
        WrongBackbone: the mask was made for another backbone.
    """
    check_fits(mask, backbone)
    mask = with_bits(mask, backbone)
    weights = {name: tensor.numpy().copy() for name, tensor in backbone.model.state_dict().items()}
    theta = np.zeros(mask.layout.n_elements, np.float32)
    for tensor in mask.layout:
        theta[tensor.elements] = weights[tensor.name].reshape(-1)
    masked = apply_slowly(theta, mask)
    for tensor in mask.layout:
        weights[tensor.name] = masked[tensor.elements].reshape(tensor.shape)
    weights.update({name: np.ascontiguousarray(values) for name, values in mask.state.items()})
    return weights


def n_classes_of(mask: TaskMask, *, with_head: bool, with_map: bool = True) -> int:
    """`num_classes` of the plain timm model that `export` writes for: those of the head, the map's D, or 0."""
    if with_head and mask.head is not None:
        return len(mask.head.classes)
    return mask.layout.n_features if with_map and mask.affine is not None else 0


def classifier_weights(
    backbone: Backbone, mask: TaskMask, *, with_head: bool, with_map: bool = True
) -> dict[str, ndarray]:
    """The mask's map, its head, or both in one, under timm's names for the classifier of the architecture.

    The map `(z - mean) @ W.T` is a classifier of D classes with weight W and bias `-W mean`; a head acts on its output.
    A mask with neither gives nothing: its model is built with `num_classes=0`.

    Raises:
        InvalidMask: a head is asked for and the mask has none, or the architecture has no single linear classifier.
        InvalidArgument: a head without the map that it acts on.
    """
    if with_head and mask.head is None:
        raise InvalidMask("the mask has no head to export")
    if with_head and not with_map and mask.affine is not None:
        raise InvalidArgument("--head with --no-map: the head acts on mapped embeddings, so leave one of them out")
    if not n_classes_of(mask, with_head=with_head, with_map=with_map):
        return {}
    weight, bias = np.eye(mask.layout.n_features), np.zeros(mask.layout.n_features)
    if mask.affine is not None:
        weight = mask.affine.full.astype(np.float64)
        bias = -weight @ mask.affine.mean
    if with_head and mask.head is not None:
        weight, bias = mask.head.weight @ weight, mask.head.weight @ bias + mask.head.bias
    model = create_model(backbone.architecture, num_classes=len(bias), **backbone.args)
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if not isinstance(classifier, str) or shapes.get(f"{classifier}.weight") != weight.shape:
        what, leave_out, tensors = (
            ("head", "leave out --head", "head") if with_head else ("map", "say --no-map", "affine")
        )
        raise InvalidMask(
            f"{backbone.architecture} has no single linear classifier to put the {what} in: {leave_out}, and apply the "
            f"file's {tensors}.* tensors to what the model gives"
        )
    return {f"{classifier}.weight": weight.astype(np.float32), f"{classifier}.bias": bias.astype(np.float32)}


def export(backbone: Backbone, mask: TaskMask, out: Path, *, with_head: bool = False, with_map: bool = True) -> None:
    """Write the weights as a safetensors file that loads into plain timm with `strict=True`.

    The model is built with `num_classes=n_classes_of(...)`. Without the map it gives the mask's unmapped features.

    Raises:
        InvalidArgument: another suffix.
        WrongBackbone, InvalidMask: as `masked_weights` and `classifier_weights`.
    """
    if out.suffix != ".safetensors":
        raise InvalidArgument(f"--out {out}: a safetensors file is written, so name it .safetensors")
    weights = masked_weights(backbone, mask) | classifier_weights(
        backbone, mask, with_head=with_head, with_map=with_map
    )
    metadata = {"format": "pt", "model": mask.model, "mask": mask.digest or ""}
    write_bytes(out, tensorfile.serialise_tensors(weights, metadata))
