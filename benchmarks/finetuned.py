"""Weights of a whole model that learned, as `smn train` writes them after fine-tuning, back in a backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from smn_core.backbone import Backbone, load_backbone, wrap
from smn_core.spec import BackboneSpec


def load_finetuned(spec: BackboneSpec, weights: Path) -> Backbone:
    """The backbone of a spec with other weights in place; they have the shapes that its model has at its image size.

    `--weights` takes weights at the model's own size alone: a ViT's places are fitted to another size as it is loaded.
    """
    found = load_backbone(spec)
    model = found.model.cpu()
    model.load_state_dict(load_file(weights))
    return wrap(model, found.architecture, replace(spec, weights=weights), device=found.device)
