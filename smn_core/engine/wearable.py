"""A prepared mask: all that putting it on needs, on the device.

The model wears a mask when its modules find the weights of that mask. A mask is worn in one of two ways. It may have a
slot: an array of theta', written in full. Or it may be a patch: few weights of one shared array are changed for it, and
changed back for the next mask. Either way every mask gives the same embeddings; costs.py says which way is cheaper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from smn_core.engine.compact import CompactMask, make_compact
from smn_core.engine.costs import Choice, Costs, choose
from smn_core.engine.device.transfer import to_device
from smn_core.engine.theta import Theta
from smn_core.mask import TaskMask
from smn_core.tensorfile import hash_tensors


@dataclass(frozen=True, eq=False)
class WearableMask:
    """A mask in the form that the model can wear.

    Attributes:
        key: a hash of bits and state. Masks that have it in common share this object, and so a slot.
        state: its normalisation statistics, by name; those that it lacks are the root's.
        patched: whether it is a patch and never has a slot.
        moved: of a patch, the tensors whose `1 / alpha` is applied to the layer's output and not to its weights.
        flat_state: the array that `state` are views of, where slots keep copies of it.
    """

    key: str
    compact: CompactMask
    state: Mapping[str, Tensor]
    patched: bool = False
    moved: Bool[ndarray, "n_tensors"] = field(default_factory=lambda: np.zeros(0, bool))
    flat_state: Float[Tensor, "n"] | None = None

    @property
    def nbytes(self) -> int:
        arrays = self.state.values() if self.flat_state is None else (self.flat_state,)
        return self.compact.nbytes + self.moved.nbytes + sum(array.nbytes for array in arrays)


def make_wearable(mask: TaskMask, theta: Theta, costs: Costs | None = None) -> WearableMask:
    """Do all the work for a mask that can be done before its first batch. Safe on any thread.

    Args:
        costs: decide by these whether the mask is a patch; without them it is not.
    """
    key = key_of(mask)
    compact = make_compact(mask, theta.device, theta.kernel_layout)
    if costs is not None:
        choice = choose(compact, theta.layout, theta.sites, costs)
    else:
        choice = Choice(False, np.zeros(len(theta.layout.tensors), bool))
    if theta.flat_state is not None and mask.state:
        flat = theta.flat_state.flatten(mask.state)
        state = theta.flat_state.views_of(flat)
        return WearableMask(key, compact, state, choice.patched, choice.moved, flat)
    state = {name: to_device(values, theta.device).to(theta.state[name]) for name, values in mask.state.items()}
    return WearableMask(key, compact, state, choice.patched, choice.moved)


def key_of(mask: TaskMask) -> str:
    """A hash of what makes the weights that are worn: bits and state. Map, head and texts have no part in it."""
    digest = hashlib.sha256(mask.packed.tobytes())
    hash_tensors(digest, mask.state)
    return digest.hexdigest()
