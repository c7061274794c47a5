"""LoRA adapters (PEFT) on the same timm backbone beside the engine, in one process: switched, and merged, in turn.

    .venv/bin/python -m benchmarks.peers.lora [--quick] [--model NAME] [--tasks 1,16] [--out FILE.jsonl]

Batches of 8 images whose tasks follow each law; both sides get a batch's images sorted by task. `set_adapter` runs each
task's images with its adapter beside every layer; `merged` adds the adapter to the weights first and takes it off for
the next task. Adapters have rank 8 on the layers that masks mask, weights random. Before anything is timed, an adapter
and a mask are compared with plain timm whose weights were changed by hand. Times are one thread's processor time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load as load_bytes
from torch import Tensor, nn

from benchmarks.rows import row
from benchmarks.server import mask_file, random_weights
from benchmarks.traffic import LAWS, tasks_of
from smn_core.backbone import Backbone, load_backbone
from smn_core.engine import Engine, Segment
from smn_core.maskfile import parse_mask
from smn_core.verbs.export import masked_weights

MODEL, DENSITY, RANK, BATCH, SLOTS = "vit_tiny_patch16_224", 0.9995, 8, 8, 16
LAYERS = r"blocks\..*\.(qkv|proj|fc1|fc2)"
N_ADDED, TOLERANCE = 5, 1e-3
SMN = "smn"
Run = tuple[int, int, int]
"""Rows from, to, and the number of their task."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 and 16 tasks, two laws, 4 turns instead of 15")
    parser.add_argument("--model", default=MODEL, help="a VisionTransformer of timm's")
    parser.add_argument("--tasks", help="numbers of tasks, with commas")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    numbers = [int(n) for n in (args.tasks or ("1,16" if args.quick else "1,16,100,1000")).split(",")]
    with tempfile.TemporaryDirectory() as text:
        bench = Bench(args.model, Path(text), args.out)
        bench.check()
        bench.sizes()
        for n_tasks in numbers:
            bench.grow(n_tasks)
            laws = ("identical", "zipf:1.5") if args.quick else LAWS
            for law in laws if n_tasks > 1 else laws[:1]:
                bench.traffic(n_tasks, law, 4 if args.quick else 15)


class Bench:
    """The engine with masks, a PEFT model with adapters, both on the same weights; task i is mask i and adapter i."""

    def __init__(self, model: str, folder: Path, out: Path | None) -> None:
        self.spec, self.folder, self.out = random_weights(model, folder), folder, out
        self.backbone: Backbone = load_backbone(self.spec)
        self.engine = Engine(load_backbone(self.spec), SLOTS, threads=1, capacity=BATCH)
        torch.manual_seed(1)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LAYERS, init_lora_weights=False)
        self.adapted: Any = get_peft_model(load_backbone(self.spec).model, config, adapter_name=_name(0)).eval()
        self.adapted.save_pretrained(str(folder), selected_adapters=[_name(0)])
        self.saved = folder / _name(0)
        self.masks, self.digests, self.n_adapters = list[bytes](), list[str](), 1
        self.merged: int | None = None
        self.x = torch.randn(BATCH, *self.backbone.preprocess["input_size"])
        self.params = {"model": model, "rank": RANK, "batch": BATCH, "slots": SLOTS, "threads": 1, "clock": "process"}
        self.grow(1)

    def grow(self, n_tasks: int) -> None:
        """Have that many tasks, on both sides."""
        for index in range(len(self.digests), n_tasks):
            self._add_mask(mask_file(self.backbone, DENSITY, index))
        for _ in range(self.n_adapters, n_tasks):
            self._add_adapter()

    @torch.inference_mode()
    def check(self) -> None:
        """Both sides embed as plain timm with weights changed by hand.

        Raises:
            RuntimeError: they do not.
        """
        masked = {n: torch.from_numpy(w) for n, w in masked_weights(self.backbone, self._mask(0)).items()}
        _require(
            "the mask", self.engine.embed(self.x, [Segment(self.digests[0], 0, BATCH)]).embeddings, self._plain(masked)
        )
        state = self.backbone.model.state_dict()
        lora = load_bytes((self.saved / "adapter_model.safetensors").read_bytes())
        for key in [key for key in lora if ".lora_A." in key]:
            name = key.removeprefix("base_model.model.").replace(".lora_A.", ".")
            both = lora[key.replace(".lora_A.", ".lora_B.")] @ lora[key]
            state[name] = state[name] + 2.0 * torch.from_numpy(both)
        expected = self._plain(state)
        for variant in (self.set_adapter, self.merge):
            _require(f"LoRA, {variant.__name__}", variant([(0, BATCH, 0)]), expected)
        self._unmerge()

    def sizes(self) -> None:
        """Bytes a task, and the time from its file to being ready, on both sides."""
        adapter = sum(p.nbytes for n, p in self.adapted.named_parameters() if f".{_name(0)}." in n)
        disk = float((self.saved / "adapter_model.safetensors").stat().st_size)
        self._compare("disk a task", "B", [float(len(self.masks[0]))], [disk])
        self._compare("memory a task", "B", [float(self.engine.bytes_of(self.digests[0]))], [float(adapter)])
        added: dict[str, list[float]] = {SMN: [], "lora": []}
        for index in range(len(self.digests), len(self.digests) + N_ADDED):
            file = self.folder / f"{index}.smn"
            file.write_bytes(mask_file(self.backbone, DENSITY, index))
            added[SMN].append(1e3 * _seconds(lambda file=file: self._add_mask(file.read_bytes())))  # type: ignore[misc]
            added["lora"].append(1e3 * _seconds(self._add_adapter))
        self._compare("time to add a task", "ms", added[SMN], added["lora"])

    @torch.inference_mode()
    def traffic(self, n_tasks: int, law: str, turns: int) -> None:
        """Images a second, in turn on the same batches; the first turn warms up."""
        variants: dict[str, Callable[[Sequence[Run]], object]] = {
            SMN: self.embed, "lora, set_adapter": self.set_adapter, "lora, merged": self.merge,
        }  # fmt: skip
        taken: dict[str, list[float]] = {name: [] for name in variants}
        last: int | None = None
        for turn in range(turns + 1):
            runs = runs_of(tasks_of(law, BATCH, n_tasks, np.random.default_rng(turn)), first=turn * BATCH, n=n_tasks)
            for name, run in variants.items():
                # Untimed: each finds its weights as it left them, the merged one with its last task on.
                if name == "lora, merged":
                    self._merge(last)
                else:
                    self._unmerge()
                seconds = _seconds(partial(run, runs))
                last = self.merged if name == "lora, merged" else last
                if turn:
                    taken[name].append(seconds)
        params = {"tasks": n_tasks, "law": law}
        for name, values in taken.items():
            self._row(name, params, "images/s", "images/s", [BATCH / s for s in values])
            if name != SMN:
                ratios = [theirs / ours for ours, theirs in zip(taken[SMN], values, strict=True)]
                self._row(name, params, "images/s, SMN's ratio to it", "x", ratios)

    def embed(self, runs: Sequence[Run]) -> Tensor:
        return self.engine.embed(self.x, [Segment(self.digests[task], a, b) for a, b, task in runs]).embeddings

    def set_adapter(self, runs: Sequence[Run]) -> Tensor:
        parts = []
        for a, b, task in runs:
            self.adapted.set_adapter(_name(task), inference_mode=True)
            parts.append(self.adapted(self.x[a:b]))
        return torch.cat(parts)

    def merge(self, runs: Sequence[Run]) -> Tensor:
        parts = []
        for a, b, task in runs:
            self._merge(task)
            parts.append(self.adapted(self.x[a:b]))
        return torch.cat(parts)

    def _merge(self, task: int | None) -> None:
        if task != self.merged:
            self._unmerge()
            if task is not None:
                self.adapted.merge_adapter([_name(task)])
            self.merged = task

    def _unmerge(self) -> None:
        if self.merged is not None:
            self.adapted.unmerge_adapter()
            self.merged = None

    def _add_mask(self, data: bytes) -> None:
        mask = parse_mask(data, self.backbone.layout)
        self.engine.prepare(mask)
        self.masks.append(data)
        self.digests.append(str(mask.digest))

    def _add_adapter(self) -> None:
        self._unmerge()
        self.adapted.load_adapter(self.saved, _name(self.n_adapters), torch_device="cpu", low_cpu_mem_usage=True)
        self.n_adapters += 1

    def _mask(self, index: int) -> Any:
        return parse_mask(self.masks[index], self.backbone.layout)

    def _plain(self, weights: dict[str, Tensor]) -> Tensor:
        model: nn.Module = timm.create_model(self.backbone.architecture, num_classes=0).eval()
        model.load_state_dict(weights)
        found: Tensor = model(self.x)
        return found

    def _compare(self, metric: str, unit: str, ours: list[float], theirs: list[float]) -> None:
        self._row(SMN, {}, metric, unit, ours)
        self._row("lora", {}, metric, unit, theirs)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        self._row("lora", {}, f"{metric}, SMN's ratio to it", "x", ratios)

    def _row(self, variant: str, params: dict[str, Any], metric: str, unit: str, values: Sequence[float]) -> None:
        row("lora", variant, self.params | params, metric, unit, values, out=self.out)


def runs_of(tasks: Sequence[int], first: int, n: int) -> list[Run]:
    """Sort a batch by task; `first` shifts the tasks, so that batches in which all differ do not repeat one another."""
    distinct = len(set(tasks)) == len(tasks) > 1
    order = sorted((task + first) % n if distinct else task for task in tasks)
    edges = [0, *(i for i in range(1, len(order)) if order[i] != order[i - 1]), len(order)]
    return [(a, b, order[a]) for a, b in pairwise(edges)]


def _require(who: str, found: Tensor, expected: Tensor) -> None:
    distance = float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))
    if not distance <= TOLERANCE:
        raise RuntimeError(f"{who}: {distance:.3g} away from plain timm's embeddings")


def _name(index: int) -> str:
    return f"task-{index}"


def _seconds(run: Callable[[], object]) -> float:
    """Processor time of this process."""
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main()
