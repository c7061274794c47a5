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

from benchmarks.peers.runtimes import NEEDS, Embed, Graph, open_model
from smn_core.images import ImageReader

GRAPH = "graph.onnx"


@dataclass(frozen=True)
class Place:
    """What every server of full copies is told: `folder` holds TASK.safetensors, and the graph of all where a runtime
    other than torch (runtimes.py) runs them."""

    model: str
    folder: Path
    port: int
    budget_bytes: int
    runtime: str = "torch"
    dtype: str = "float32"

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
    parser.add_argument("--runtime", default="torch", choices=("torch", *NEEDS))
    parser.add_argument("--dtype", default="float32", help="that the runtime computes in")
    given = parser.parse_args()
    torch.set_num_threads(1)
    return Place(given.model, given.folder, given.port, given.budget_bytes, given.runtime, given.dtype)


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
            return self._run(task, torch.stack(images))

    def load(self, task: str, into: nn.Module | None = None) -> nn.Module:
        """A copy with the task's weights; those of `into` are written over."""
        model = copy.deepcopy(self._empty) if into is None else into
        model.load_state_dict(load_file(self._folder / f"{task}.safetensors"))
        return model

    def _run(self, task: str, images: torch.Tensor) -> list[list[float]]:
        rows: list[list[float]] = self._model(task)(images).tolist()
        return rows

    def _model(self, task: str) -> nn.Module:
        if task not in self._models:
            full = len(self._models) >= self._capacity
            self._models[task] = self.load(task, self._models.popitem(last=False)[1] if full else None)
        self._models.move_to_end(task)
        return self._models[task]


class RuntimeCopies(Copies):
    """The same in ONNX Runtime or OpenVINO: a copy is a graph that its runtime has optimised for the task's weights."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._place, self._graph = place, Graph((place.folder / GRAPH).read_bytes())
        self._opened: OrderedDict[str, Embed] = OrderedDict()

    def _run(self, task: str, images: torch.Tensor) -> list[list[float]]:
        if task not in self._opened:
            if len(self._opened) >= self._capacity:
                self._opened.popitem(last=False)
            graph = self._graph.with_weights(load_file(self._folder / f"{task}.safetensors"))
            self._opened[task] = open_model(self._place.runtime, graph, dtype=self._place.dtype)
        self._opened.move_to_end(task)
        rows: list[list[float]] = self._opened[task](images.numpy()).tolist()
        return rows


def copies_of(place: Place) -> Copies:
    """The copies that a place asks for."""
    return Copies(place) if place.runtime == "torch" else RuntimeCopies(place)
