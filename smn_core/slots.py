"""theta once, K slots of theta', who is resident, least recently used out.

A slot is one flat array; the parameters of the model are views of it. Choosing a slot sets those views in the modules
that own the parameters, some hundred dictionary entries; nothing is copied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from smn_core.apply import Applier, applier_for
from smn_core.backbone import Backbone
from smn_core.costs import Costs, choose
from smn_core.mask import TaskMask
from smn_core.patch import views
from smn_core.resident import Resident, resident_of
from smn_core.sites import Weights, sites_of


@dataclass(frozen=True, eq=False)
class Prepared:
    """A mask in the form the device keeps: its bits, its normalisation state, and how it is worn.

    `patched`: by a patch of the shared array, where it is in no slot; `moved` says of which tensors `1 / alpha` is then
    applied behind the product.
    """

    digest: str
    bits: Resident
    state: Mapping[str, Tensor]
    patched: bool = False
    moved: Bool[ndarray, "n_tensors"] = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes + self.moved.nbytes + sum(tensor.nbytes for tensor in self.state.values())


@dataclass(frozen=True)
class Memory:
    """Bytes that the engine holds: theta, prepared masks, and the weights made of them.

    `resident_masks` counts the masks in a slot, `prepared_masks` those that are ready.
    """

    theta: int
    masks: int
    slots: int
    resident_masks: int
    prepared_masks: int


class Slots:
    """Resident weights of one backbone. Owned by one thread, but for `prepare`.

    The root (digest None) is theta itself: always resident, never written.
    """

    def __init__(self, backbone: Backbone, capacity: int, threads: int) -> None:
        self._layout = backbone.layout
        self.sites = sites_of(backbone.model, backbone.layout)
        self.theta = _flatten(backbone)
        self.applier: Applier = applier_for(self.theta, backbone.layout, threads)
        self.root_state: Weights = {
            name: buffer for name, buffer in backbone.model.named_buffers() if name in self._layout.buffers
        }
        self._capacity = capacity
        self._arrays: list[Tensor] = []
        self._resident: OrderedDict[str, int] = OrderedDict()
        self._free: list[int] = []
        self.root_views: Weights = views(self.theta, self._layout)
        self._slot_views: list[Weights] = []
        self.use(None)

    def prepare(self, mask: TaskMask, costs: Costs | None = None) -> Prepared:
        """Everything a later swap needs, on the device; with `costs` it may be worn by a patch. Safe on any thread."""
        assert mask.digest is not None
        like = next(iter(self.root_state.values()), self.theta)
        state = {name: torch.from_numpy(values.copy()).to(like) for name, values in mask.state.items()}
        bits, moved = resident_of(mask, self.theta.device), np.zeros(len(self._layout.tensors), bool)
        patched = costs is not None and choose(bits, self._layout, self.sites, moved, costs)
        return Prepared(mask.digest, bits, state, patched, moved)

    def touch(self, digest: str) -> bool:
        """Whether a mask is resident; if so it is the last to be evicted."""
        if digest in self._resident:
            self._resident.move_to_end(digest)
            return True
        return False

    def drop(self, digest: str) -> None:
        """Forget a mask; its slot is free."""
        if digest in self._resident:
            self._free.append(self._resident.pop(digest))

    @property
    def nbytes(self) -> int:
        """Bytes of the slots that exist. Safe on any thread."""
        return sum(array.nbytes for array in list(self._arrays))

    @property
    def resident_masks(self) -> int:
        return len(self._resident)

    def swap_in(self, prepared: Prepared) -> None:
        """Write theta' of a mask into the least recently used slot."""
        slot = self._next_slot()
        try:
            self.applier.write(prepared.bits, self._arrays[slot])
        except BaseException:
            self._free.append(slot)
            raise
        self._resident[prepared.digest] = slot

    def use(self, prepared: Prepared | None) -> None:
        """Make the model wear a resident mask, or the root. The weights of the last one stay where they are."""
        if prepared is None:
            self.show(self.root_views, {})
        else:
            self.show(self.views(prepared), prepared.state)

    def views(self, prepared: Prepared) -> Weights:
        """The parameters of a resident mask, by name."""
        return self._slot_views[self._resident[prepared.digest]]

    def show(self, weights: Weights, state: Weights) -> None:
        """Make the model find these weights, and this state where it has any; elsewhere the root's."""
        state = {**self.root_state, **state}
        for site in self.sites:
            site.show(weights, state)

    def _next_slot(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._arrays) < self._capacity:
            array = torch.zeros_like(self.theta)
            self._arrays.append(array)
            self._slot_views.append(views(array, self._layout))
            return len(self._arrays) - 1
        _, slot = self._resident.popitem(last=False)
        return slot


def _flatten(backbone: Backbone) -> Float[Tensor, "n_elements"]:
    """Copy the maskable weights into one flat array, each tensor at its `first_element`."""
    theta = torch.zeros(backbone.layout.n_elements, dtype=backbone.dtype, device=backbone.device)
    parameters = dict(backbone.model.named_parameters())
    for tensor in backbone.layout:
        theta[tensor.elements] = parameters[tensor.name].detach().flatten()
    return theta
