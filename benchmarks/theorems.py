"""A mask knows lr / (S0 - mu) alone: loss and mask agreement under several settings (the paper's figure 5).

    .venv/bin/python -m benchmarks.theorems [--steps 40] [--out docs/figures/theorems.png]

scikit-learn's digits at 32 px, a ViT of two blocks with random weights, SwAV, batch 16, seed 0; every setting sees the
same crops. Settings with lr / (S0 - mu) = 50 have one curve and one mask: to the bit where they differ by a power of
two, else but for weights that rounding puts on either side. One with another ratio has another curve.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, seed_everything
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from benchmarks.rows import row
from smn_core.backbone import load_backbone
from smn_core.files import replacing
from smn_core.spec import BackboneSpec
from training.config import Config
from training.data import open_split
from training.learner import Learner
from training.masking import MaskRule, list_scores
from training.request import Request
from training.run import Prepared, make_loader
from training.swav import Crops, SwavConfig
from training.trainer import make_trainer, quieten

SETTINGS = ((50.0, 1.0, 0.0), (100.0, 2.0, 0.0), (100.0, 2.5, 0.5), (50.0, 2.0, 1.0), (100.0, 1.0, 0.0))
"""(lr, S0, mu); the last has another ratio."""
ARGS: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2}


class Watch(Callback):
    """Loss and bits of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.bits: list[np.ndarray] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.losses.append(float(outputs["loss"]))
        self.bits.append(torch.cat([s.on().flatten() for _, s in list_scores(pl_module.model)]).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/theorems.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        watched = [learn(Path(name), setting, args.steps) for setting in SETTINGS]
    first = watched[0]
    for (lr, start, threshold), watch in zip(SETTINGS, watched, strict=True):
        params = {"lr": lr, "S0": start, "mu": threshold, "steps": args.steps}
        agreement = float((watch.bits[-1] == first.bits[-1]).mean())
        density = float(watch.bits[-1].mean())
        row("theorems", label(lr, start, threshold), params, "mask agreement", "fraction", [agreement])
        row("theorems", label(lr, start, threshold), params, "density", "fraction", [density])
    draw(watched, args.out)


def learn(folder: Path, setting: tuple[float, float, float], steps: int) -> Watch:
    """One run under one setting."""
    lr, start, threshold = setting
    crops = Crops(32, 2, (0.5, 1.0), 16, 1, (0.3, 0.5), jitter=0.5, flip=0.0)
    swav = SwavConfig(crops=crops, projection=8, prototypes=16, queue=0, frozen_steps=-1)
    rule = MaskRule(start, threshold)
    config = Config("theorems", steps=steps, batch_size=16, lr=lr, mask=rule, swav=swav)
    data, weights = inputs(folder)
    spec = BackboneSpec("test_vit", weights, ARGS, 32, device="cpu")
    request = Request(spec, str(data), config, folder / "mask.smn", overwrite=True, workers=0)
    watch = Watch()
    backbone, images = load_backbone(spec), open_split(str(data), "train")
    seed_everything(0, verbose=False)
    learner = Learner(backbone, config, steps)
    loader = make_loader(Prepared(request, 0, 1, None, images, backbone, {}), learner, 0)
    quieten()
    make_trainer(learner, request.folder, backbone.device, 1, [watch], shows=True).fit(learner, loader)
    return watch


def inputs(folder: Path) -> tuple[Path, Path]:
    """Digits as an .npz and random weights."""
    data, weights = folder / "digits.npz", folder / "weights.safetensors"
    if not data.exists():
        found = load_digits()
        pixels = np.kron(found.images[:640] * 15, np.ones((4, 4))).astype(np.uint8)
        np.savez(data, x_train=np.repeat(pixels[..., None], 3, axis=-1))
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", pretrained=False, num_classes=0, **ARGS).state_dict(), weights)
    return data, weights


def label(lr: float, start: float, threshold: float) -> str:
    return f"lr {lr:g}, S0 {start:g}, mu {threshold:g}"


def draw(watched: list[Watch], out: Path) -> None:
    """Loss on the left, agreement with the first setting's mask on the right."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (setting, watch) in enumerate(zip(SETTINGS, watched, strict=True)):
        steps = range(1, len(watch.losses) + 1)
        agreement = [float((a == b).mean()) for a, b in zip(watch.bits, watched[0].bits, strict=True)]
        # Equal curves lie on each other: wide and pale below, thin and dark above.
        last = i == len(watched) - 1
        style: dict[str, Any] = {"linewidth": 1.2 if last else 5 - 1.2 * i, "alpha": 1.0 if last else 0.35 + 0.2 * i}
        left.plot(steps, watch.losses, color=f"C{i}", label=label(*setting), **style)
        right.plot(steps, agreement, color=f"C{i}", **style)
    left.set_xlabel("step")
    left.set_ylabel("loss")
    left.legend(fontsize=7)
    right.set_xlabel("step")
    right.set_ylabel("mask agreement with the first")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=100)


if __name__ == "__main__":
    main()
