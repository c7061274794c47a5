"""The tasks that peers serve, as masks and as full weights."""

from __future__ import annotations

import os
from pathlib import Path

import httpx2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import nn

from benchmarks.peers.copies import GRAPH
from benchmarks.peers.runtimes import export
from benchmarks.photos import photo
from benchmarks.server import mask_file, random_weights
from service.registry.open import open_registry
from smn_core.backbone import Backbone, load_backbone
from smn_core.images import ImageReader
from smn_core.maskfile import parse_mask
from smn_core.verbs.export import masked_weights

DENSITY, SEED = 0.9995, 7
FILES = 16
"""Tasks whose weights differ; the files of the others are links to theirs."""


def name_of(index: int) -> str:
    return f"task-{index}"


class Tasks:
    """The tasks of a run: a mask file each for SMN, full weights for the others, and what plain timm says of them."""

    def __init__(self, model: str, folder: Path, n_tasks: int) -> None:
        self.model, self.folder, self.weights = model, folder, folder / "weights"
        self.weights.mkdir()
        self.spec = random_weights(model, folder)
        self.backbone: Backbone = load_backbone(self.spec)
        self.image = photo()
        self.client = httpx2.Client()  # made once: it reads certificates for longer than an upload takes
        self.registry = folder / "registry"
        registry = open_registry(str(self.registry), self.backbone.fingerprint)
        for index in range(n_tasks):
            data = self.mask(index)
            registry.publish("masks", name_of(index), data)
            if index < FILES:
                save_file(masked_weights(self.backbone, parse_mask(data, self.backbone.layout)), self.file(index))
            else:
                os.link(self.file(index % FILES), self.file(index))
        registry.close()

    def write_graph(self) -> None:
        """The model's graph, which the copies of other runtimes than torch share."""
        model: nn.Module = timm.create_model(self.model, num_classes=0).eval()
        (self.weights / GRAPH).write_bytes(export(model, tuple(self.backbone.preprocess["input_size"])))

    def mask(self, index: int) -> bytes:
        return mask_file(self.backbone, DENSITY, SEED + index)

    def file(self, index: int) -> Path:
        return self.weights / f"{name_of(index)}.safetensors"

    @torch.inference_mode()
    def expected(self, index: int) -> NDArray[np.float32]:
        """The embedding of the image by plain timm."""
        from safetensors.torch import load_file

        model: nn.Module = timm.create_model(self.model, num_classes=0).eval()
        model.load_state_dict(load_file(self.file(index)))
        x = ImageReader(self.backbone.preprocess)(self.image)
        return np.asarray(model(x[None])[0], np.float32)
