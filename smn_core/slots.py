"""theta once, K slots of theta', who is resident, least recently used out.

A slot is one flat array; the parameters of the model are views of it. Choosing a slot sets those views in the modules
that own the parameters, some hundred dictionary entries; nothing is copied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smn_core.apply import Applier, applier_for
from smn_core.backbone import Backbone
from smn_core.mask import TaskMask
from smn_core.resident import Resident, resident_of

Place = tuple[dict[str, Tensor | None], str]
"""Where a module looks a parameter or buffer up: its own table and the name in it."""


@dataclass(frozen=True)
class Prepared:
    """A mask in the form the device keeps: its bits, and its normalisation state."""

    digest: str
    bits: Resident
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Memory:
    """Bytes of theta and of the slots that exist, and how many masks are in them."""

    theta: int
    slots: int
    resident_masks: int


class Slots:
    """Resident weights of one backbone. Owned by one thread, but for `prepare`.

    The root (digest None) is theta itself: always resident, never written.
    """

    def __init__(self, backbone: Backbone, capacity: int, threads: int) -> None:
        self._layout = backbone.layout
        self._places = _places(backbone.model)
        self._theta = _flatten(backbone)
        self._applier: Applier = applier_for(self._theta, backbone.layout, threads)
        self._root_state = {
            name: buffer for name, buffer in backbone.model.named_buffers() if name in self._layout.buffers
        }
        self._capacity = capacity
        self._arrays: list[Tensor] = []
        self._resident: OrderedDict[str, int] = OrderedDict()
        self._free: list[int] = []
        self._root_views = self._views(self._theta)
        self._slot_views: list[dict[str, Tensor]] = []
        self.use(None)

    def prepare(self, mask: TaskMask) -> Prepared:
        """Everything a later swap needs, on the device. Safe on any thread."""
        assert mask.digest is not None
        like = next(iter(self._root_state.values()), self._theta)
        state = {name: torch.from_numpy(values.copy()).to(like) for name, values in mask.state.items()}
        return Prepared(mask.digest, resident_of(mask, self._theta.device), state)

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

    def memory(self) -> Memory:
        """Safe on any thread."""
        return Memory(self._theta.nbytes, sum(array.nbytes for array in list(self._arrays)), len(self._resident))

    def swap_in(self, prepared: Prepared) -> None:
        """Write theta' of a mask into the least recently used slot."""
        slot = self._next_slot()
        try:
            self._applier.write(prepared.bits, self._arrays[slot])
        except BaseException:
            self._free.append(slot)
            raise
        self._resident[prepared.digest] = slot

    def use(self, prepared: Prepared | None) -> None:
        """Make the model wear a resident mask, or the root. The weights of the last one stay where they are."""
        if prepared is None:
            self._set(self._root_views, {})
            return
        self._set(self._slot_views[self._resident[prepared.digest]], prepared.state)

    def _next_slot(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._arrays) < self._capacity:
            array = torch.zeros_like(self._theta)
            self._arrays.append(array)
            self._slot_views.append(self._views(array))
            return len(self._arrays) - 1
        _, slot = self._resident.popitem(last=False)
        return slot

    def _views(self, flat: Float[Tensor, "n_elements"]) -> dict[str, Tensor]:
        """The parameters of a slot, by name."""
        return {t.name: nn.Parameter(flat[t.elements].view(t.shape), requires_grad=False) for t in self._layout}

    def _set(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        for name, tensor in weights.items():
            for table, key in self._places[name]:
                table[key] = tensor
        for name, tensor in self._root_state.items():
            for table, key in self._places[name]:
                table[key] = state.get(name, tensor)


def _places(model: nn.Module) -> dict[str, list[Place]]:
    """Where the modules look up each parameter and buffer; a tied parameter has several places."""
    names = {id(p): name for name, p in [*model.named_parameters(), *model.named_buffers()]}
    found: dict[str, list[Place]] = {}
    for module in model.modules():
        for table, key, tensor in _tables(module):
            found.setdefault(names[id(tensor)], []).append((table, key))
    return found


def _tables(module: nn.Module) -> Iterator[tuple[dict[str, Tensor | None], str, Tensor]]:
    for table in (module._parameters, module._buffers):
        for key, tensor in table.items():
            if tensor is not None:
                yield table, key, tensor  # type: ignore[misc]


def _flatten(backbone: Backbone) -> Float[Tensor, "n_elements"]:
    """Copy the maskable weights into one flat array, each tensor at its `first_element`."""
    theta = torch.zeros(backbone.layout.n_elements, dtype=backbone.dtype, device=backbone.device)
    parameters = dict(backbone.model.named_parameters())
    for tensor in backbone.layout:
        theta[tensor.elements] = parameters[tensor.name].detach().flatten()
    return theta
