"""The controls that a mask must beat, as masks: all weights ON, and as many flips at random places.

What embeddings depend on is a mask's bits and state; its map comes after. So a mask is split into the two, and masks
that differ in their map alone share their forwards.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from smn_core import bits
from smn_core.affine import Affine
from smn_core.backbone import Backbone
from smn_core.mask import TaskMask


def make_all_on(backbone: Backbone, affine: Affine | None = None) -> TaskMask:
    """The mask that switches nothing off: the frozen backbone, with a map where one is given."""
    packed = [bits.pack(np.ones(tensor.n_weights, np.bool_)) for tensor in backbone.layout]
    return TaskMask(backbone.layout, backbone.model_json, backbone.fingerprint, np.concatenate(packed), affine=affine)


def flip_at_random(mask: TaskMask, seed: int) -> TaskMask:
    """As many OFF weights in every tensor as `mask` has, at random places; the state stays, the map goes.

    The places depend on the numbers and the seed alone, so masks of equal bits have one control.
    """
    rng = np.random.default_rng((seed, *(int(on) for on in mask.on_counts)))
    packed = []
    for tensor, on in zip(mask.layout, mask.on_counts, strict=True):
        drawn = np.ones(tensor.n_weights, np.bool_)
        drawn[rng.choice(tensor.n_weights, tensor.n_weights - int(on), replace=False)] = False
        packed.append(bits.pack(drawn))
    return replace(mask, packed=np.concatenate(packed), head=None, affine=None, metadata={}, digest=None)


def strip(mask: TaskMask) -> TaskMask | None:
    """What the forwards of a mask depend on: bits and state, with a digest of their own; None: nothing is changed."""
    if mask.n_off == 0 and not mask.state:
        return None
    sha = hashlib.sha256(mask.packed.tobytes())
    for name in sorted(mask.state):
        sha.update(f"{name}|".encode() + np.ascontiguousarray(mask.state[name]).tobytes())
    return replace(mask, head=None, affine=None, metadata={}, digest=f"stripped:{sha.hexdigest()}")
