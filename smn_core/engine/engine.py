"""embed(images, segments) -> embeddings: the contract that everything above the core sees.

    z[s.start:s.stop] = model(x[s.start:s.stop]; theta * on[s.mask] / alpha[s.mask])     for every segment s

`prepare`, `ready` and `release` may be called from any thread; `embed` from one thread at a time, since choosing the
weights and running the forward is one critical section.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from smn_core.backbone import Backbone
from smn_core.engine.compact import Resident
from smn_core.engine.costs import costs_for, mixing_pays
from smn_core.engine.device.graphs import Capture, Graphs
from smn_core.engine.device.transfer import Batch, Staging, current
from smn_core.engine.device.ways import Ways, ways_of
from smn_core.engine.mixed.correction import Corrector
from smn_core.engine.mixed.mixed import Mixed, Part, Unsplittable
from smn_core.engine.patch import Patch
from smn_core.engine.rehearsal import rehearse
from smn_core.engine.sites import Weights, scale_behind
from smn_core.engine.slots import Memory, Prepared, Slots
from smn_core.errors import InvalidArgument, NotReady, OverCapacity
from smn_core.mask import TaskMask
from smn_core.maskfile import check_fits

LOG = logging.getLogger("smn.engine")
UNKNOWN = Prepared(
    "", Resident(torch.zeros(0, dtype=torch.int32), np.zeros(1, np.int32), {}, np.zeros(0, np.float32)), {}
)
"""Stands for whatever a model wears after something failed half way: no mask of anybody's."""


class Run(NamedTuple):
    """Consecutive rows of one mask; None is the root."""

    start: int
    stop: int
    mask: Prepared | None


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


def slots_within(backbone: Backbone, budget_bytes: int) -> int:
    """How many slots a budget holds; one at least."""
    return max(1, budget_bytes // (backbone.layout.n_elements * backbone.dtype.itemsize))


class Engine:
    """One backbone and the masks it can wear.

    A batch of one mask in a slot is a plain forward. A mask with few OFF weights is worn by a patch of one shared array
    instead of in a slot; a batch that mixes masks runs in one forward (mixed.py) where the model allows it, segment by
    segment where not. costs.py says which; the embeddings are the same.

    Args:
        backbone: taken over: its model belongs to the engine from here on.
        slots: masks whose weights are resident at once; memory for one is taken when it is first needed.
        threads: threads that write a slot on the CPU; by default torch's own number, at most 4.
        capacity: the most masks that one batch may mix; by default as many as slots.
        ways: how to compute; by default all that the backbone's device allows.
    """

    def __init__(
        self,
        backbone: Backbone,
        slots: int = 4,
        threads: int | None = None,
        capacity: int | None = None,
        ways: Ways | None = None,
    ) -> None:
        threads = threads if threads is not None else min(4, torch.get_num_threads())
        capacity = capacity if capacity is not None else slots
        if slots < 1 or threads < 1 or capacity < 1:
            raise InvalidArgument("slots, threads and capacity must be at least 1")
        self.backbone = backbone
        self.capacity = capacity
        self.slots = slots
        ways = ways if ways is not None else ways_of(backbone.device)
        with current(backbone.device):
            self._slots = Slots(backbone, slots, threads, ways.kernels, fixed=ways.capture is not None)
            theta = self._slots.theta
            self._patch = Patch(theta, backbone.layout, self._slots.applier)
            corrector = Corrector(theta, backbone.layout, threads, mixing_pays(self._slots.sites, backbone.layout))
            # A captured forward reads its weights where they were: in slots.
            self._costs = None if ways != Ways() else costs_for(backbone.device, backbone.dtype)
            root = self._slots.root_views, self._slots.root_state
            self._mixed = Mixed(
                self._slots.sites,
                backbone.layout,
                root,
                self._patch,
                corrector,
                self._costs,
                self._slots.kernels,
            )
            self._splittable = rehearse(backbone, self._slots, self._mixed)
            self._graphs = graphs_of(backbone, ways.capture)
            self._staging = Staging(backbone.device)
        self._mixes = self._splittable and mixing_pays(self._slots.sites, backbone.layout)
        self._scales = [1.0] * len(backbone.layout.tensors)
        self._worn: Prepared | None = None
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
            prepared = self._slots.prepare(mask, self._costs)
            with self._lock:
                self._prepared[mask.digest] = prepared
        return warnings

    def ready(self, digest: str) -> bool:
        """Whether `embed` takes segments with this mask."""
        return digest in self._prepared

    def bytes_of(self, digest: str) -> int:
        """Bytes that a prepared mask keeps, outside of slots; 0 for one that is not."""
        mask = self._prepared.get(digest)
        return 0 if mask is None else mask.nbytes

    def memory(self) -> Memory:
        """What the engine holds now. Safe on any thread."""
        with self._lock:
            prepared = list(self._prepared.values())
        made = self._slots.nbytes + self._patch.nbytes
        masks = sum(mask.nbytes for mask in prepared)
        return Memory(self._slots.theta.nbytes, masks, made, self._slots.resident_masks, len(prepared))

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
        with torch.inference_mode(False):  # an ordinary tensor: probes train on it
            out = torch.empty(x.shape[0], self.backbone.n_features)
        runs = _runs(segments, masks)
        began = time.perf_counter()
        try:
            with current(self.backbone.device):
                batch, result = self._staging.batch(x, self.backbone.dtype), self._staging.result(out)
                swaps, swap_s = self._run(batch, result, runs)
                self._staging.finish(result, out)
        except BaseException:
            self._forget_worn()
            raise
        return Embedded(out, swaps, swap_s, time.perf_counter() - began - swap_s)

    def _run(self, batch: Batch, out: Float32[Tensor, "n d"], runs: Sequence[Run]) -> tuple[int, float]:
        """Embed all runs into `out`; returns how many masks were put on, and the seconds that took."""
        began = time.perf_counter()
        swaps, mixes = 0, len(runs) > 1 and self._mixes
        if len(runs) > 1 and not (mixes and self._mixed.all_linear):
            in_slots = {run.mask.digest: run.mask for run in runs if run.mask is not None and not run.mask.patched}
            # What is there is touched first, so that no swap of this batch evicts it.
            absent = [mask for mask in in_slots.values() if not self._slots.touch(mask.digest)]
            if len(in_slots) > self.slots:
                mixes = False
            else:
                for mask in absent:
                    self._swap_in(mask)
                swaps = len(absent)
        swap_s = time.perf_counter() - began
        if mixes and self._run_mixed(batch.rows, out, runs):
            return swaps, swap_s
        for run in runs:
            began = time.perf_counter()
            swaps += self._wear(run.mask) if self._graphs is None else self._bring(run.mask)
            swap_s += time.perf_counter() - began
            out[run.start : run.stop] = self._forward(run.mask, batch.rows[run.start : run.stop])
        return swaps, swap_s

    def _forward(self, mask: Prepared | None, x: Tensor) -> Float[Tensor, "n d"]:
        """Through a mask that is worn or, with graphs, resident."""
        if self._graphs is None:
            return self.backbone.model(x)
        place = None if mask is None else self._slots.place(mask)
        return self._graphs.run(place, x, lambda: self._wear(mask), self.backbone.model)

    def _run_mixed(self, x: Tensor, out: Float32[Tensor, "n d"], runs: Sequence[Run]) -> bool:
        """All runs in one forward; False if the model will not have it."""
        parts = [Part(run.start, run.stop, run.mask, self._weights(run.mask)) for run in runs]
        try:
            if self._graphs is not None and self._mixed.all_linear:
                self._mixed.take(parts, self._graphs.size_for(x) or len(x))
                forward = partial(self._mixed.forward, self.backbone.model)
                out[:] = self._graphs.run("mixed", x, self._forget_worn, forward)
            else:
                self._forget_worn()
                out[:] = self._mixed.run(self.backbone.model, x, parts)
        except Unsplittable as error:
            LOG.warning("batches that mix masks run segment by segment: %s", error)
            self._mixes = False
            return False
        return True

    def _weights(self, mask: Prepared | None) -> Weights | None:
        if mask is None or self._mixed.all_linear:
            return self._slots.root_views
        return None if mask.patched else self._slots.views(mask)

    def _bring(self, mask: Prepared | None) -> int:
        """Have a mask that is not worn by a patch in a slot; returns 1 if it was not there."""
        if mask is None or mask.patched or self._slots.touch(mask.digest):
            return 0
        self._swap_in(mask)
        return 1

    def _wear(self, mask: Prepared | None) -> int:
        """Make the model wear a mask; returns 1 if weights were written for that. The last one worn costs nothing."""
        written = self._bring(mask)
        if mask is self._worn:
            return 0
        before, self._worn = self._worn, UNKNOWN
        if mask is not None and mask.patched:
            self._wear_patch(mask, before)
            written = 1
        else:
            self._slots.use(mask)
            scale_behind(self._slots.sites, None)
        self._worn = mask
        return written

    def _wear_patch(self, mask: Prepared, before: Prepared | None) -> None:
        """From one patch to the next, the modules have the shared array and look their scales up already."""
        views = self._patch.views
        self._patch.wear(mask.bits, mask.moved)
        self._scales[:] = np.where(mask.moved, mask.bits.scales, 1).tolist()
        in_place = before is not None and before.patched and self._patch.views is views
        if not in_place or mask.state or (before is not None and before.state):
            self._slots.show(self._patch.views, mask.state)
        if not in_place:
            scale_behind(self._slots.sites, self._scales)

    def _swap_in(self, mask: Prepared) -> None:
        self._worn = UNKNOWN  # its slot may be the one that is written
        self._slots.swap_in(mask)

    def _forget_worn(self) -> None:
        """The model wears the root, whatever was half done."""
        self._worn = UNKNOWN
        self._wear(None)

    def _masks_of(self, n_rows: int, segments: Sequence[Segment]) -> dict[str, Prepared]:
        """The prepared masks of a batch, taken once: a release from now on does not touch it."""
        edges = [0, *(s.stop for s in segments)]
        if edges[-1] != n_rows or any(s.start != e or s.stop <= s.start for s, e in zip(segments, edges, strict=False)):
            raise InvalidArgument(f"the segments are not consecutive parts of {n_rows} rows: {list(segments)}")
        wanted = dict.fromkeys(s.mask for s in segments if s.mask is not None)
        if len(wanted) > self.capacity:
            raise OverCapacity(f"{len(wanted)} masks in one batch, the engine mixes at most {self.capacity}")
        with self._lock:
            released, self._released = self._released, []
            missing = [digest for digest in wanted if digest not in self._prepared]
            masks = {digest: self._prepared[digest] for digest in wanted if digest not in missing}
        for digest in released:
            self._slots.drop(digest)
        if missing:
            raise NotReady(f"mask {missing[0]} is not prepared")
        return masks


def graphs_of(backbone: Backbone, capture: Capture | None) -> Graphs | None:
    """The captured forwards of a backbone, where they can be captured."""
    if capture is None:
        return None
    return Graphs(tuple(backbone.preprocess["input_size"]), backbone.dtype, backbone.device, capture)


def _runs(segments: Sequence[Segment], masks: Mapping[str, Prepared]) -> list[Run]:
    """The segments with their masks; neighbours of one mask are one run."""
    found: list[Run] = []
    for segment in segments:
        mask = None if segment.mask is None else masks[segment.mask]
        if found and found[-1].mask is mask:
            found[-1] = Run(found[-1].start, segment.stop, mask)
        else:
            found.append(Run(segment.start, segment.stop, mask))
    return found
