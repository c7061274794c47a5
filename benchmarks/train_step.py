"""What learning a mask costs: a SwAV step that moves scores against the same step that moves all weights.

    .venv/bin/python -m benchmarks.train_step [--quick] [--out benchmarks/results/train_step.jsonl]

ViT-Tiny with random weights, crops of 96 px (two big ones), batch 64, SGD with momentum, float32. The two variants take
their steps in turn (A B A B) in one process, so a ratio survives a noisy machine. Targets: time at most 1.15x, peak
memory at most 1.25x.

Peak memory is measured in a process of its own for each variant: the largest resident size after the steps less what
the process held before it built the model. Weights, scores, momentum, gradients and activations are in it; Python,
torch and timm are not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import timm
import torch

from benchmarks.rows import row
from benchmarks.turns import seconds_in_turn
from smn_core.backbone import wrap
from smn_core.spec import BackboneSpec
from training.config import Config
from training.data import Batch
from training.learner import Learner
from training.swav import Crops, SwavConfig

MODEL, SIDE_PX, BATCH = "vit_tiny_patch16_224", 96, 64
VARIANTS: dict[str, str] = {"all weights": "swav-finetune", "mask": "swav"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 turns instead of 20")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    parser.add_argument("--memory-of", choices=list(VARIANTS), help="print this variant's peak bytes, and nothing else")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(peak_bytes(VARIANTS[args.memory_of])))
        return
    params = {"model": MODEL, "px": SIDE_PX, "batch": BATCH, "threads": args.threads}
    steps = {variant: stepper(objective) for variant, objective in VARIANTS.items()}
    seconds = seconds_in_turn(steps, 3 if args.quick else 20)
    for variant, values in seconds.items():
        row("train_step", variant, params, "time", "s", values, out=args.out)
    ratios = seconds["mask"] / seconds["all weights"]
    row("train_step", "mask", params, "time ratio to all weights", "x", ratios, out=args.out)
    memory = {variant: measured_bytes(variant, args.threads) for variant in VARIANTS}
    for variant, value in memory.items():
        row("train_step", variant, params, "peak memory", "MiB", [value / 2**20], out=args.out)
    ratio = memory["mask"] / memory["all weights"]
    row("train_step", "mask", params, "peak memory ratio to all weights", "x", [ratio], out=args.out)


def stepper(objective: str) -> Callable[[], None]:
    """A function that takes one whole step: forward, backward, optimiser."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, pretrained=False, num_classes=0)
    backbone = wrap(model, MODEL, BackboneSpec(MODEL))
    crops = Crops(big_px=SIDE_PX, n_big=2, n_small=0)
    swav = SwavConfig(crops=crops, queue=0, frozen_steps=0)
    # The scores' gradients do not change what a step costs; a small rate keeps both variants away from collapse.
    config = replace(Config("train-step"), objective=objective, lr=1e-3, swav=swav)
    learner = Learner(backbone, config, 1000)
    learner.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimiser = learner.configure_optimizers()["optimizer"]
    batch = Batch([torch.randn(BATCH, 3, SIDE_PX, SIDE_PX) for _ in range(2)], None)

    def step() -> None:
        learner.on_train_batch_start(batch, 0)
        optimiser.zero_grad()
        learner.training_step(batch, 0).backward()
        learner.on_before_optimizer_step(optimiser)
        optimiser.step()

    return step


def peak_bytes(objective: str) -> int:
    """How far the largest resident size of this process rises over two steps."""
    before = status_bytes("VmRSS")
    step = stepper(objective)
    for _ in range(2):
        step()
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    """A size of this process as Linux knows it; `ru_maxrss` would start from the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024


def measured_bytes(variant: str, threads: int) -> int:
    command = [sys.executable, "-m", "benchmarks.train_step", "--memory-of", variant, "--threads", str(threads)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(ran.stdout))


if __name__ == "__main__":
    main()
