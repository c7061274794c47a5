"""What a cascade costs: one image through six masks against one plain timm forward, in turn.

    .venv/bin/python -m benchmarks.cascade [--quick] [--model NAME] [--out benchmarks/results/cascade.jsonl]

Random weights, and masks of density .99 that are all resident: the cost depends on sizes alone. What fusions keep, and
at how many bytes, `smn evaluate --cascade DIR --fusion ...` tells.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from benchmarks.masks import random_mask
from benchmarks.rows import row
from benchmarks.turns import seconds_in_turn
from smn_core.backbone import Backbone, wrap
from smn_core.cascade.cascade import Cascade, concatenate_all, concatenate_picked, fuse
from smn_core.cascade.fusion import CONDITIONAL, MODES, UNCONDITIONAL, Fusion
from smn_core.cascade.router import Router, route
from smn_core.engine import Engine, Segment
from smn_core.mask import TaskMask
from smn_core.matrices import quantise
from smn_core.spec import BackboneSpec

MODELS = ("vit_tiny_patch16_224", "resnet50")
EXPERTS, DENSITY = 5, 0.99
LIMITS = {UNCONDITIONAL: 6.6, CONDITIONAL: 2.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="7 turns instead of 31")
    parser.add_argument("--model", help="only this one")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in [args.model] if args.model else MODELS:
        cost(name, turns=7 if args.quick else 31, threads=args.threads, out=args.out)


@torch.inference_mode()
def cost(name: str, turns: int, threads: int, out: Path | None) -> None:
    """Milliseconds of one image, and the ratio to the plain forward of the same turn."""
    model = timm.create_model(name, num_classes=0).eval()
    plain = timm.create_model(name, num_classes=0).eval()
    plain.load_state_dict(model.state_dict())
    backbone = wrap(model, name, BackboneSpec(name))
    masks = [
        random_mask(backbone.layout, DENSITY, np.random.default_rng(seed), backbone) for seed in range(1 + EXPERTS)
    ]
    engine = Engine(backbone, slots=1 + EXPERTS, threads=threads)
    for mask in masks:
        engine.prepare(mask)
    cascade = _cascade(backbone, masks)
    x = torch.randn(1, *backbone.preprocess["input_size"])
    variants: dict[str, Callable[[], Any]] = {
        "plain timm": partial(plain, x),
        "one mask": partial(engine.embed, x, [Segment(masks[0].digest, 0, 1)]),
        UNCONDITIONAL: partial(_unconditional, engine, cascade, x),
        CONDITIONAL: partial(_conditional, engine, cascade, x),
    }
    seconds = seconds_in_turn(variants, turns, warm_up=2)
    params = {"model": name, "masks": 1 + EXPERTS, "density": DENSITY, "images": 1, "threads": threads}
    floor = seconds["plain timm"]
    for variant, values in seconds.items():
        row("cascade", variant, params, "time", "ms", values * 1e3, out=out)
        if variant != "plain timm":
            limit = {"limit": LIMITS[variant]} if variant in LIMITS else {}
            row("cascade", variant, params | limit, "ratio to plain", "x", values / floor, out=out)


def _unconditional(engine: Engine, cascade: Cascade, x: torch.Tensor) -> np.ndarray:
    """As the service runs it: one batch of segments, then the fusion."""
    segments = [Segment(digest, i, i + 1) for i, digest in enumerate(cascade.masks)]
    z = engine.embed(x.expand(len(segments), -1, -1, -1), segments).embeddings.numpy()
    return fuse(cascade, UNCONDITIONAL, concatenate_all(list(z[:, None])))


def _conditional(engine: Engine, cascade: Cascade, x: torch.Tensor) -> np.ndarray:
    """Two passes: the root, the router, then the expert."""
    assert cascade.router is not None
    root = engine.embed(x, [Segment(cascade.root, 0, 1)]).embeddings.numpy()
    chosen = route(cascade.router, root)
    expert = engine.embed(x, [Segment(cascade.experts[chosen[0]], 0, 1)]).embeddings.numpy()
    return fuse(cascade, CONDITIONAL, concatenate_picked(root, expert, chosen, len(cascade.experts)))


def _cascade(backbone: Backbone, masks: list[TaskMask]) -> Cascade:
    rng, d, r = np.random.default_rng(0), backbone.n_features, 20
    f = (1 + EXPERTS) * d

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    tensors = {"mean": normal(f), **quantise("components", normal(d, f), "int8"), "scale": np.ones(d, np.float32)}
    upper = np.triu(normal(EXPERTS, r, r)) * (1 - np.eye(r, dtype=np.float32)) + np.eye(r, dtype=np.float32)
    weights = np.full(EXPERTS, 1 / EXPERTS, np.float32)
    router = Router(normal(d), normal(r, d), np.ones(r, np.float32), weights, normal(EXPERTS, r), upper)
    digests = [str(mask.digest) for mask in masks]
    fusion = Fusion("pca", dict.fromkeys(MODES, tensors))
    return Cascade(backbone.fingerprint, digests[0], tuple(digests[1:]), fusion, router=router)


if __name__ == "__main__":
    main()
