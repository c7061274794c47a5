"""One full model a task: as many as a memory budget holds, the least recently used one reloaded from disk."""

from __future__ import annotations

import argparse
import copy
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import nn

from smn_core.images import ImageReader


@dataclass(frozen=True)
class Place:
    """What every server of full copies is told: `folder` holds TASK.safetensors."""

    model: str
    folder: Path
    port: int
    budget_bytes: int

    @property
    def capacity(self) -> int:
        """Copies that the budget holds; one at least."""
        return capacity_of(self.model, self.budget_bytes)


def place_of_arguments() -> Place:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--budget-bytes", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    return Place(given.model, given.folder, given.port, given.budget_bytes)


def capacity_of(model: str, budget_bytes: int) -> int:
    """Copies of a model that a budget holds; one at least."""
    with torch.device("meta"):
        weights = timm.create_model(model, num_classes=0).state_dict()
    return max(1, budget_bytes // sum(tensor.nbytes for tensor in weights.values()))


class Copies:
    """Models by task. Safe on several threads; the model that `embed` runs is not reloaded meanwhile."""

    def __init__(self, place: Place) -> None:
        self._folder, self._capacity = place.folder, place.capacity
        self._empty = timm.create_model(place.model, num_classes=0).eval().requires_grad_(False)
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._lock = threading.Lock()
        self.reader = ImageReader(
            {
                key: value
                for key, value in resolve_model_data_config(self._empty).items()
                if key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
            }
        )

    def embed(self, task: str, images: list[torch.Tensor]) -> list[list[float]]:
        """Embeddings of images [3,H,W] through the task's copy."""
        with self._lock, torch.inference_mode():
            rows: list[list[float]] = self._model(task)(torch.stack(images)).tolist()
            return rows

    def load(self, task: str, into: nn.Module | None = None) -> nn.Module:
        """A copy with the task's weights; those of `into` are written over."""
        model = copy.deepcopy(self._empty) if into is None else into
        model.load_state_dict(load_file(self._folder / f"{task}.safetensors"))
        return model

    def _model(self, task: str) -> nn.Module:
        if task not in self._models:
            full = len(self._models) >= self._capacity
            self._models[task] = self.load(task, self._models.popitem(last=False)[1] if full else None)
        self._models.move_to_end(task)
        return self._models[task]
