"""embed(images, segments) -> embeddings: the contract that everything above the core sees.

    z[s.start:s.stop] = model(x[s.start:s.stop]; theta * on[s.mask] / alpha[s.mask])     for every segment s

`prepare`, `ready` and `release` may be called from any thread; `embed` from one thread at a time, since choosing the
weights and running the forward is one critical section.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from smn_core.backbone import Backbone
from smn_core.errors import InvalidArgument, NotReady, OverCapacity
from smn_core.mask import TaskMask
from smn_core.maskfile import check_fits
from smn_core.slots import Memory, Prepared, Slots


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of a batch wear the mask with digest `mask`; None is the untouched backbone."""

    mask: str | None
    start: int
    stop: int


@dataclass(frozen=True)
class Embedded:
    """Embeddings in the order of the rows, on the CPU, and where the time went."""

    embeddings: Float32[Tensor, "n d"]
    swaps: int
    swap_s: float
    forward_s: float


class Engine:
    """One backbone and the masks it can wear.

    Args:
        backbone: taken over: its model belongs to the engine from here on.
        slots: masks whose weights are resident at once, and so the most that one batch may mix.
        threads: threads that write a slot on the CPU; by default torch's own number, at most 4.
    """

    def __init__(self, backbone: Backbone, slots: int = 4, threads: int | None = None) -> None:
        threads = threads if threads is not None else min(4, torch.get_num_threads())
        if slots < 1 or threads < 1:
            raise InvalidArgument("slots and threads must be at least 1")
        self.backbone = backbone
        self.capacity = slots
        self._slots = Slots(backbone, slots, threads)
        self._prepared: dict[str, Prepared] = {}
        self._lock = threading.Lock()
        self._released: list[str] = []

    def prepare(self, mask: TaskMask) -> list[str]:
        """Make a mask ready; returns warnings. A second call for one digest does nothing.

        Raises:
            WrongBackbone: it was made for another backbone, or for pixels that mean something else.
            InvalidArgument: it has no digest: it is not a file yet.
        """
        if mask.digest is None:
            raise InvalidArgument("a mask without a digest cannot be served: write it to a file first")
        warnings = check_fits(mask, self.backbone)
        if not self.ready(mask.digest):
            prepared = self._slots.prepare(mask)
            with self._lock:
                self._prepared[mask.digest] = prepared
        return warnings

    def ready(self, digest: str) -> bool:
        """Whether `embed` takes segments with this mask."""
        return digest in self._prepared

    def memory(self) -> Memory:
        """What the engine keeps resident now."""
        return self._slots.memory()

    def release(self, digest: str) -> None:
        """Forget a mask; an `embed` that is running finishes with it."""
        with self._lock:
            if self._prepared.pop(digest, None) is not None:
                self._released.append(digest)

    @torch.inference_mode()
    def embed(self, x: Float32[Tensor, "n 3 h w"], segments: Sequence[Segment]) -> Embedded:
        """Pooled, unnormalised features of every row through its segment's mask.

        Args:
            x: normalised images.
            segments: consecutive, together all rows of `x`.

        Raises:
            InvalidArgument: the segments do not cover `x`.
            NotReady: a mask that was not prepared.
            OverCapacity: more distinct masks than `capacity`.
        """
        masks = self._masks_of(x.shape[0], segments)
        began = time.perf_counter()
        swaps = self._make_resident(masks)
        swapped = time.perf_counter()
        x = x.to(self.backbone.device, self.backbone.dtype)
        with torch.inference_mode(False):  # an ordinary tensor: probes train on it
            out = torch.empty(x.shape[0], self.backbone.n_features)
        try:
            for segment in segments:
                self._slots.use(masks[segment.mask] if segment.mask is not None else None)
                out[segment.start : segment.stop] = self.backbone.model(x[segment.start : segment.stop])
        finally:
            self._slots.use(None)
        return Embedded(out, swaps, swapped - began, time.perf_counter() - swapped)

    def _masks_of(self, n_rows: int, segments: Sequence[Segment]) -> dict[str, Prepared]:
        """The prepared masks of a batch, taken once: a release from now on does not touch it."""
        edges = [0, *(s.stop for s in segments)]
        if edges[-1] != n_rows or any(s.start != e or s.stop <= s.start for s, e in zip(segments, edges, strict=False)):
            raise InvalidArgument(f"the segments are not consecutive parts of {n_rows} rows: {list(segments)}")
        wanted = dict.fromkeys(s.mask for s in segments if s.mask is not None)
        if len(wanted) > self.capacity:
            raise OverCapacity(f"{len(wanted)} masks in one batch, the engine has {self.capacity} slots")
        with self._lock:
            released, self._released = self._released, []
            missing = [digest for digest in wanted if digest not in self._prepared]
            masks = {digest: self._prepared[digest] for digest in wanted if digest not in missing}
        for digest in released:
            self._slots.drop(digest)
        if missing:
            raise NotReady(f"mask {missing[0]} is not prepared")
        return masks

    def _make_resident(self, masks: dict[str, Prepared]) -> int:
        """Swap in what is not in a slot yet; what is already there is touched first, so that no swap evicts it."""
        absent = [p for p in masks.values() if not self._slots.touch(p.digest)]
        for prepared in absent:
            self._slots.swap_in(prepared)
        return len(absent)
