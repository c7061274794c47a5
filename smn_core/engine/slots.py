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
from jaxtyping import Bool, Float, Float32
from numpy import ndarray
from torch import Tensor

from smn_core.backbone import Backbone
from smn_core.engine.apply import Applier, applier_for
from smn_core.engine.compact import Resident, resident_of
from smn_core.engine.costs import Costs, choose
from smn_core.engine.device.transfer import to_device
from smn_core.engine.kernels.choice import load
from smn_core.engine.kernels.devicemask import Plan
from smn_core.engine.patch import views
from smn_core.engine.sites import Weights, sites_of
from smn_core.mask import TaskMask


@dataclass(frozen=True, eq=False)
class Prepared:
    """A mask in the form the device keeps: its bits, its normalisation state, and how it is worn.

    `patched`: by a patch of the shared array, where it is in no slot; `moved` says of which tensors `1 / alpha` is then
    applied behind the product. `state` are views of `flat_state` where slots keep a copy of it.
    """

    digest: str
    bits: Resident
    state: Mapping[str, Tensor]
    patched: bool = False
    moved: Bool[ndarray, "n_tensors"] = field(default_factory=lambda: np.zeros(0, bool))
    flat_state: Float[Tensor, "n"] | None = None

    @property
    def nbytes(self) -> int:
        arrays = self.state.values() if self.flat_state is None else (self.flat_state,)
        return self.bits.nbytes + self.moved.nbytes + sum(array.nbytes for array in arrays)


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

    With `fixed`, a mask in a slot has its normalisation state there too: all that a forward through a slot reads stays
    where it is, whichever mask the slot holds.
    """

    def __init__(
        self, backbone: Backbone, capacity: int, threads: int, kernels: bool = False, fixed: bool = False
    ) -> None:
        self._layout = backbone.layout
        self.sites = sites_of(backbone.model, backbone.layout)
        self.theta = _flatten(backbone)
        self.kernels = load(self.theta, backbone.layout) if kernels else None
        self.applier: Applier = (
            self.kernels.applier if self.kernels else applier_for(self.theta, backbone.layout, threads)
        )
        self.root_state: Weights = {
            name: buffer for name, buffer in backbone.model.named_buffers() if name in self._layout.buffers
        }
        self._flat_state = FlatState(self.root_state) if fixed else None
        self._slot_states: list[Tensor] = []
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
        bits = resident_of(mask, self.theta.device, self.plan)
        moved = np.zeros(len(self._layout.tensors), bool)
        patched = costs is not None and choose(bits, self._layout, self.sites, moved, costs)
        if self._flat_state is not None and mask.state:
            flat = self._flat_state.with_own(mask.state)
            return Prepared(mask.digest, bits, self._flat_state.views(flat), patched, moved, flat)
        state = {
            name: to_device(values, self.theta.device).to(self.root_state[name]) for name, values in mask.state.items()
        }
        return Prepared(mask.digest, bits, state, patched, moved)

    @property
    def plan(self) -> Plan | None:
        """How masks are prepared for the kernels, where there are any."""
        return self.kernels.plan if self.kernels is not None else None

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
        return sum(array.nbytes for array in [*self._arrays, *self._slot_states])

    @property
    def resident_masks(self) -> int:
        return len(self._resident)

    def swap_in(self, prepared: Prepared) -> None:
        """Write theta' of a mask into the least recently used slot."""
        slot = self._next_slot()
        try:
            self.applier.write(prepared.bits, self._arrays[slot])
            if self._flat_state is not None:
                own = prepared.flat_state
                self._slot_states[slot].copy_(own if own is not None else self._flat_state.root)
        except BaseException:
            self._free.append(slot)
            raise
        self._resident[prepared.digest] = slot

    def use(self, prepared: Prepared | None) -> None:
        """Make the model wear a resident mask, or the root. The weights of the last one stay where they are."""
        if prepared is None:
            self.show(self.root_views, {})
        elif self._flat_state is not None:
            self.show(self.views(prepared), self._flat_state.views(self._slot_states[self.place(prepared)]))
        else:
            self.show(self.views(prepared), prepared.state)

    def place(self, prepared: Prepared) -> int:
        """The slot that a resident mask is in."""
        return self._resident[prepared.digest]

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
            if self._flat_state is not None:
                self._slot_states.append(self._flat_state.root.clone())
            return len(self._arrays) - 1
        _, slot = self._resident.popitem(last=False)
        return slot


class FlatState:
    """Normalisation statistics in one array: a mask's come to a slot by one copy."""

    def __init__(self, root: Weights) -> None:
        self._shapes = {name: tensor.shape for name, tensor in root.items()}
        like = next(iter(root.values()), torch.zeros(0))
        self.root = torch.cat([like.new_zeros(0), *(tensor.detach().flatten() for tensor in root.values())])

    def views(self, flat: Float[Tensor, "n"]) -> Weights:
        """The statistics of an array, by name."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), flat.split(sizes), strict=True) if sizes else ()
        return {name: part.view(shape) for (name, shape), part in parts}

    def with_own(self, state: Mapping[str, Float32[ndarray, "..."]]) -> Float[Tensor, "n"]:
        """The array of a mask: its own statistics, the root's where it has none."""
        flat = self.root.clone()
        for name, view in self.views(flat).items():
            if name in state:
                view.copy_(torch.from_numpy(state[name].copy()))
        return flat


def _flatten(backbone: Backbone) -> Float[Tensor, "n_elements"]:
    """Copy the maskable weights into one flat array, each tensor at its `first_element`."""
    theta = torch.zeros(backbone.layout.n_elements, dtype=backbone.dtype, device=backbone.device)
    parameters = dict(backbone.model.named_parameters())
    for tensor in backbone.layout:
        theta[tensor.elements] = parameters[tensor.name].detach().flatten()
    return theta
