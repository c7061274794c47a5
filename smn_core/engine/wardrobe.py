"""What the model wears now: the root, a mask in its slot, or a mask as a patch; and how the next mask is put on.

Putting a mask on can fail half way, and then nobody knows what the model wears. This is the one place that deals with
that. Before the first change the wardrobe notes that what is worn is unknown, and only after the last one which mask it
is. So after a failure the next mask is put on in full, whichever it is.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from smn_core.engine.compact import CompactMask
from smn_core.engine.patch import Patch
from smn_core.engine.sites import scale_behind
from smn_core.engine.slots import Slots
from smn_core.engine.theta import Theta
from smn_core.engine.wearable import WearableMask

UNKNOWN = WearableMask(
    "", CompactMask(torch.zeros(0, dtype=torch.int32), np.zeros(1, np.int32), {}, np.zeros(0, np.float32)), {}
)
"""Stands for whatever the model wears after a change that did not end: no mask of anybody's."""


class Wardrobe:
    """Puts masks on. Owned by one thread. The model must wear the root at the start."""

    def __init__(self, theta: Theta, slots: Slots, patch: Patch) -> None:
        self._theta, self._slots, self._patch = theta, slots, patch
        self._worn: WearableMask | None = None
        self._in_slot = False
        self._scales = [1.0] * len(theta.layout.tensors)

    def wear(self, mask: WearableMask | None) -> int:
        """Make the model wear a mask; None is the root. The mask that it wears already costs nothing.

        Returns:
            1 if weights were written for that, else 0.
        """
        in_slot = mask is not None and self._wants_slot(mask)
        written = self._bring(mask) if mask is not None and in_slot else 0
        if mask is self._worn and in_slot == self._in_slot:
            return 0
        before, was_in_slot = self._worn, self._in_slot
        self._worn = UNKNOWN
        if mask is None:
            self._theta.show(self._theta.root, {})
        elif in_slot:
            self._theta.show(self._slots.views_of(mask), self._slots.state_of(mask))
        else:
            self._wear_patch(mask, None if was_in_slot else before)
            written = 1
        if mask is None or in_slot:
            scale_behind(self._theta.sites, None)
        self._worn, self._in_slot = mask, in_slot
        return written

    def reset(self) -> None:
        """Make the model wear the root, whatever may have happened to it outside of this class."""
        self._worn = UNKNOWN
        self.wear(None)

    def bring(self, mask: WearableMask | None) -> int:
        """See that a mask has a slot, if it is one that needs a slot; returns 1 if the slot was written, else 0."""
        return 0 if mask is None or mask.patched else self._bring(mask)

    def bring_all(self, masks: Collection[WearableMask]) -> int | None:
        """See that these masks have slots at the same time.

        Args:
            masks: distinct ones that need a slot.

        Returns:
            How many slots were written; None, and none is written, where there are too few slots.
        """
        # Masks with a slot are touched first, so that no write for this batch takes one of their slots.
        absent = [mask for mask in masks if not self._slots.touch(mask.key)]
        if len(masks) > self._slots.capacity:
            return None
        for mask in absent:
            self._write(mask)
        return len(absent)

    def _wants_slot(self, mask: WearableMask) -> bool:
        """Whether a mask is worn in a slot, or as a patch.

        Where slots are folded a forward through one is faster. So a patch that is worn for a second batch in a row
        gets a slot, and keeps to it as long as nobody takes it. One that is all ON gets it at once: it embeds as the
        root does, bit for bit, and the root is folded.
        """
        if not mask.patched:
            return True
        if self._theta.folding is None:
            return False
        return mask is self._worn or bool((mask.compact.scales == 1).all()) or self._slots.touch(mask.key)

    def _bring(self, mask: WearableMask) -> int:
        if self._slots.touch(mask.key):
            return 0
        self._write(mask)
        return 1

    def _write(self, mask: WearableMask) -> None:
        self._worn = UNKNOWN  # the slot that is written may be the one that the model wears
        self._slots.write(mask)

    def _wear_patch(self, mask: WearableMask, before: WearableMask | None) -> None:
        """After another patch, the modules have the shared array already, and look up their scales at every call."""
        views = self._patch.views
        self._patch.write(mask.compact, mask.moved)
        self._scales[:] = np.where(mask.moved, mask.compact.scales, 1).tolist()
        in_place = before is not None and before.patched and self._patch.views is views
        if not in_place or mask.state or (before is not None and before.state):
            self._theta.show(self._patch.views, mask.state)
        if not in_place:
            scale_behind(self._theta.sites, self._scales)
