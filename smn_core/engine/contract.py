"""The contract of the engine: all that anything above it may know.

    z[s.start:s.stop] = model(x[s.start:s.stop]; theta * on[s.mask] / alpha[s.mask])     for every segment s
    z[s.start:s.stop] = map[s.mask](z[s.start:s.stop])                                   where the mask has a map

`embed` runs on one thread at a time, because choosing the weights and running the forward are one critical section.
Everything else here may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float32
from torch import Tensor

from smn_core.backbone import Backbone
from smn_core.mask import TaskMask


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of a batch go through the mask with digest `mask`; None is the untouched backbone."""

    mask: str | None
    start: int
    stop: int


@dataclass(frozen=True)
class Embedded:
    """Embeddings in the order of the rows, on the CPU; how many masks were put on for them; seconds of both."""

    embeddings: Float32[Tensor, "n d"]
    swaps: int
    swap_s: float
    forward_s: float


@dataclass(frozen=True)
class Memory:
    """What an engine holds, in bytes: theta, prepared masks with their maps, and the weights made of them (`slots`).

    A slot is an array for the weights of one mask. There are at most `n_slots`; `resident_masks` masks are in one, of
    the `prepared_masks` that are ready. `forms` says in which way each kind of the model's layers runs (forwards/), and
    how a batch that mixes masks does.
    """

    theta: int
    masks: int
    slots: int
    n_slots: int
    resident_masks: int
    prepared_masks: int
    forms: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class MaskHolder(Protocol):
    """What masks are made ready in: the half of an engine that a cache of masks needs."""

    @property
    def backbone(self) -> Backbone: ...

    def prepare(self, mask: TaskMask) -> list[str]:
        """Make a mask ready, beside any `embed` that runs; returns warnings. A second call for one digest does nothing.

        Raises:
            WrongBackbone: it was made for another backbone, or for pixels that mean something else.
            InvalidArgument: it has no digest: it is not a file yet.
        """

    def ready(self, digest: str) -> bool:
        """Whether `embed` takes segments with this mask."""

    def release(self, digest: str) -> None:
        """Forget a mask; an `embed` that is running finishes with it."""

    def bytes_of(self, digest: str) -> int:
        """Bytes that a prepared mask keeps, outside of slots; 0 for one that is not prepared.

        Masks with equal bits and state share most of it; each is told the whole.
        Not a part of `Memory`: who keeps a budget asks at every load, and `memory` counts all masks.
        """


@runtime_checkable
class MaskEngine(MaskHolder, Protocol):
    """One backbone and the masks that images can go through. `Engine` is the one implementation outside of tests."""

    @property
    def capacity(self) -> int:
        """The most masks that one batch may mix."""

    def has_map(self, digest: str) -> bool:
        """Whether embeddings through a prepared mask are mapped; False for one that is not prepared."""

    def embed(self, x: Float32[Tensor, "n 3 h w"], segments: Sequence[Segment]) -> Embedded:
        """Pooled, unnormalised features of every row through its segment's mask and that mask's map.

        Args:
            x: normalised images.
            segments: consecutive, together all rows of `x`.

        Raises:
            InvalidArgument: the segments do not cover `x`.
            NotReady: a mask that was not prepared.
            OverCapacity: more distinct masks than `capacity`.
        """

    def memory(self) -> Memory:
        """What the engine holds now: for gauges, not for every batch."""
