"""Random masks for benchmarks, and what one takes: what an engine costs depends on sizes and densities alone."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from smn_core import bits
from smn_core.backbone import Backbone, layout_for, model_json
from smn_core.engine.compact import make_compact
from smn_core.layout import Layout
from smn_core.mask import TaskMask
from smn_core.maskfile import parse_mask, serialise_mask

FLOAT32_BYTES = 4


def random_mask(layout: Layout, density: float, rng: np.random.Generator, backbone: Backbone | None = None) -> TaskMask:
    """Each weight ON with probability `density`, one at least in every tensor; with a digest if for a backbone."""
    packed = []
    for tensor in layout:
        on = rng.random(tensor.n_weights, np.float32) < density
        on[rng.integers(tensor.n_weights)] = True
        packed.append(bits.pack(on))
    if backbone is None:
        return TaskMask(layout, model="", fingerprint="", packed=np.concatenate(packed))
    digest = f"sha256:{rng.bytes(32).hex()}"
    return TaskMask(layout, backbone.model_json, backbone.fingerprint, np.concatenate(packed), digest=digest)


def measure_mask(model: str, density: float, turns: int = 5) -> tuple[int, int, int, float]:
    """Bytes of a slot, of a mask's file and of its resident form, and the seconds from the one to the other."""
    text = model_json(model, {})
    layout = layout_for(text)
    mask = replace(random_mask(layout, density, np.random.default_rng(0)), model=text, fingerprint="0" * 64)
    data, taken = serialise_mask(mask, "zstd"), []
    for _ in range(turns):
        began = time.process_time()
        kept = make_compact(parse_mask(data, layout), torch.device("cpu"))
        taken.append(time.process_time() - began)
    return FLOAT32_BYTES * layout.n_elements, len(data), kept.nbytes, float(np.median(taken))
