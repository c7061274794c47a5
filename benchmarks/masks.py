"""Random masks for benchmarks: what an engine costs depends on sizes and densities alone."""

from __future__ import annotations

import numpy as np

from smn_core import bits
from smn_core.backbone import Backbone
from smn_core.layout import Layout
from smn_core.mask import TaskMask


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
