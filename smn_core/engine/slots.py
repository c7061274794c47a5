"""Slots: K arrays that each hold the weights (theta') of one mask; the mask used longest ago makes room for another.

The parameters of the model can be views of a slot, so that a mask in a slot is put on without a copy.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from smn_core.engine.sites import Weights
from smn_core.engine.theta import Theta
from smn_core.engine.wearable import WearableMask


class Slots:
    """Which masks have a slot, and the arrays. Owned by one thread.

    Where theta keeps `flat_state`, a slot also holds the normalisation statistics of its mask. Then all that a forward
    through a slot reads stays at its address, whichever mask the slot holds.

    Args:
        capacity: the most slots; memory for one is taken when it is first needed.
    """

    def __init__(self, theta: Theta, capacity: int) -> None:
        self.capacity = capacity
        self._theta = theta
        self._arrays: list[Tensor] = []
        self._views: list[Weights] = []
        self._states: list[Tensor] = []
        self._resident: OrderedDict[str, int] = OrderedDict()
        self._free: list[int] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the slots that exist. Safe on any thread."""
        packed = self._theta.flat.nbytes * len(self._arrays) if self._theta.packs else 0
        return packed + sum(array.nbytes for array in [*self._arrays, *self._states])

    @property
    def resident_masks(self) -> int:
        """How many masks have a slot. Safe on any thread."""
        return len(self._resident)

    def has(self, key: str) -> bool:
        """Whether a mask has a slot."""
        return key in self._resident

    def touch(self, key: str) -> bool:
        """Whether a mask has a slot; if so, all others make room before it."""
        if key in self._resident:
            self._resident.move_to_end(key)
            return True
        return False

    def drop(self, key: str) -> None:
        """Forget a mask; its slot is free."""
        if key in self._resident:
            self._free.append(self._resident.pop(key))

    def write(self, mask: WearableMask) -> None:
        """Write the weights of a mask into a free slot, or over those of the mask that was used longest ago."""
        slot = self._take_slot()
        try:
            views = self._theta.write(mask.compact, mask.state, self._arrays[slot], self._views[slot])
            self._views[slot] = views
            if self._theta.flat_state is not None:
                own = mask.flat_state
                self._states[slot].copy_(own if own is not None else self._theta.flat_state.root)
        except BaseException:
            self._free.append(slot)
            raise
        self._resident[mask.key] = slot

    def slot_of(self, mask: WearableMask) -> int:
        """The number of a mask's slot. It must have one, as it must below."""
        return self._resident[mask.key]

    def views_of(self, mask: WearableMask) -> Weights:
        """The parameters of a mask, by name."""
        return self._views[self._resident[mask.key]]

    def state_of(self, mask: WearableMask) -> Weights:
        """The normalisation statistics of a mask, by name: all of them from the slot, or only its own."""
        flat_state = self._theta.flat_state
        return mask.state if flat_state is None else flat_state.views_of(self._states[self.slot_of(mask)])

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._arrays) < self.capacity:
            packs = self._theta.packs
            array = self._theta.flat.new_zeros(0) if packs else torch.zeros_like(self._theta.flat)
            self._arrays.append(array)
            self._views.append({} if packs else self._theta.views_in(array))
            if self._theta.flat_state is not None:
                self._states.append(self._theta.flat_state.root.clone())
            return len(self._arrays) - 1
        _, slot = self._resident.popitem(last=False)
        return slot
