"""The engine: runs every segment of a batch through its mask, in whichever way costs least.

contract.py says what the engine promises to everything above it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from smn_core.backbone import Backbone
from smn_core.engine.contract import Embedded, Memory, Segment
from smn_core.engine.costs import costs_for, forward_pays, mixing_pays, rows_of_image
from smn_core.engine.device.graphs import graphs_for
from smn_core.engine.device.transfer import Batch, Staging, current
from smn_core.engine.device.ways import Ways, find_ways
from smn_core.engine.forwards.choice import choose_forms
from smn_core.engine.forwards.forms import Forms, put_on
from smn_core.engine.maps import PreparedMap, apply_maps, prepare_map
from smn_core.engine.mixed.correction import Corrector
from smn_core.engine.mixed.mixed import Mixed, Unsplittable
from smn_core.engine.patch import Patch
from smn_core.engine.rehearsal import rehearse
from smn_core.engine.sites import Weights
from smn_core.engine.slots import Slots
from smn_core.engine.span import Span, close_up, spans_of
from smn_core.engine.theta import Theta
from smn_core.engine.wardrobe import Wardrobe
from smn_core.engine.wearable import WearableMask, key_of, make_wearable
from smn_core.errors import InvalidArgument, NotReady, OverCapacity
from smn_core.mask import TaskMask
from smn_core.maskfile import check_fits, with_bits

LOG = logging.getLogger("smn.engine")


def slots_within(backbone: Backbone, budget_bytes: int) -> int:
    """How many slots a budget holds; one at least."""
    return max(1, budget_bytes // (backbone.layout.n_elements * backbone.dtype.itemsize))


class Engine:
    """One backbone and the masks that its model can wear: see `MaskEngine` for what each method promises.

    A batch of one mask in a slot is a plain forward. A mask with few OFF weights has no slot: it is a patch of one
    shared array. A batch that mixes masks runs in one forward where the model allows it (mixed.py), and segment by
    segment where not. costs.py says which way is taken; the embeddings are the same.

    Args:
        backbone: taken over: its model belongs to the engine from here on.
        slots: masks whose weights are resident at once; memory for one is taken when it is first needed.
        threads: threads that write a slot on the CPU; by default torch's own number, at most 4.
        capacity: the most masks that one batch may mix; by default as many as slots.
        ways: how to compute; by default all that the backbone's device allows.
        forms: how the layers of the model run; by default the fastest that give plain timm's embeddings, measured at
            the first start on a machine (forwards/choice.py).
    """

    def __init__(
        self,
        backbone: Backbone,
        slots: int = 4,
        threads: int | None = None,
        capacity: int | None = None,
        ways: Ways | None = None,
        forms: Forms | None = None,
    ) -> None:
        threads = threads if threads is not None else min(4, torch.get_num_threads())
        capacity = capacity if capacity is not None else slots
        if slots < 1 or threads < 1 or capacity < 1:
            raise InvalidArgument("slots, threads and capacity must be at least 1")
        self.backbone = backbone
        self.capacity = capacity
        ways = ways if ways is not None else find_ways(backbone.device)
        if forms is not None:
            put_on(backbone, forms)
        elif ways == Ways():
            forms = choose_forms(backbone)
        self.forms = forms if forms is not None else Forms()
        # A captured forward reads its weights where they were: in slots.
        self._costs = None if ways != Ways() else costs_for(backbone.device, backbone.dtype)
        with current(backbone.device):
            self._theta = theta = Theta(backbone, threads, ways.kernels, fixed=ways.capture is not None)
            self._slots = Slots(theta, slots)
            self._patch = Patch(theta.flat, theta.layout, theta.applier)
            corrector = Corrector(theta.flat, theta.layout, threads, mixing_pays(theta.sites, theta.layout))
            self._mixed = Mixed(theta, self._patch, corrector, self._costs)
            # Weights of a slot may be folded; those of the root and of patches that a mixed batch reads are not.
            self._splittable = rehearse(backbone, theta, self._mixed) and theta.folding is None
            self._graphs = graphs_for(backbone, ways.capture)
            self._staging = Staging(backbone.device)
        self._wardrobe = Wardrobe(theta, self._slots, self._patch)
        self._mixes = self._splittable and mixing_pays(theta.sites, theta.layout)
        self._rows_of_image = rows_of_image(theta.sites, theta.layout)
        # By the file's digest; and what of that files with equal bits and state have in common, by its key.
        self._prepared: dict[str, WearableMask] = {}
        self._worn_alike: dict[str, WearableMask] = {}
        self._maps: dict[str, PreparedMap] = {}
        self._lock = threading.Lock()
        self._released: list[str] = []

    def prepare(self, mask: TaskMask) -> list[str]:
        """Make a mask ready; returns warnings.

        Raises:
            WrongBackbone, InvalidArgument: see `MaskHolder`.
        """
        digest = mask.digest
        if digest is None:
            raise InvalidArgument("a mask without a digest cannot be served: write it to a file first")
        warnings = check_fits(mask, self.backbone)
        if not self.ready(digest):
            mask = with_bits(mask, self.backbone)
            prepared = self._find_worn_alike(mask) or make_wearable(mask, self._theta, self._costs)
            mapped = None if mask.affine is None else prepare_map(mask.affine)
            with self._lock:
                self._prepared[digest] = self._worn_alike.setdefault(prepared.key, prepared)
                if mapped is not None:
                    self._maps[digest] = mapped
        return warnings

    def ready(self, digest: str) -> bool:
        """Whether `embed` takes segments with this mask."""
        return digest in self._prepared

    def has_map(self, digest: str) -> bool:
        """Whether embeddings through a prepared mask are mapped; False for one that is not prepared."""
        return digest in self._maps

    def release(self, digest: str) -> None:
        """Forget a mask; an `embed` that is running finishes with it."""
        with self._lock:
            self._maps.pop(digest, None)
            mask = self._prepared.pop(digest, None)
            if mask is not None and not any(other is mask for other in self._prepared.values()):
                del self._worn_alike[mask.key]
                self._released.append(mask.key)

    def bytes_of(self, digest: str) -> int:
        """Bytes that a prepared mask keeps, outside of slots; 0 for one that is not prepared."""
        mask, mapped = self._prepared.get(digest), self._maps.get(digest)
        return (0 if mask is None else mask.nbytes) + (0 if mapped is None else mapped.nbytes)

    def memory(self) -> Memory:
        """What the engine holds now. Safe on any thread."""
        with self._lock:
            n_prepared, prepared = len(self._prepared), list(self._worn_alike.values())
            maps = list(self._maps.values())
        return Memory(
            theta=self._theta.flat.nbytes,
            masks=sum(mask.nbytes for mask in prepared) + sum(mapped.nbytes for mapped in maps),
            slots=self._slots.nbytes + self._patch.nbytes + self._mixed.scratch.nbytes + self._theta.root_nbytes,
            n_slots=self._slots.capacity,
            resident_masks=self._slots.resident_masks,
            prepared_masks=n_prepared,
            forms={**self.forms.as_json(), "masks in one batch": self._name_mixing()},
        )

    def _name_mixing(self) -> str:
        """How a batch that mixes masks runs."""
        if not self._mixes:
            return "segment by segment"
        if self._mixed.all_linear:
            return "one forward, one launch a layer"
        return "one forward, from slots" if self._mixed.wants_slots else "one forward, written where they are used"

    @torch.inference_mode()
    def embed(self, x: Float32[Tensor, "n 3 h w"], segments: Sequence[Segment]) -> Embedded:
        """Pooled, unnormalised features of every row of normalised images, through its segment's mask and its map.

        Raises:
            InvalidArgument, NotReady, OverCapacity: see `MaskEngine`.
        """
        masks, maps = self._find_masks(x.shape[0], segments)
        with torch.inference_mode(False):  # an ordinary tensor: probes train on it
            out = torch.empty(x.shape[0], self.backbone.n_features)
        spans = spans_of(segments, masks)
        began = time.perf_counter()
        try:
            with current(self.backbone.device):
                batch, result = self._staging.send(x, self.backbone.dtype), self._staging.allocate(out)
                swaps, swap_s = self._run(batch, result, spans)
                self._staging.finish(result, out)
        except BaseException:
            self._wardrobe.reset()
            raise
        if maps:
            apply_maps(out, segments, maps)
        return Embedded(out, swaps, swap_s, time.perf_counter() - began - swap_s)

    def _run(self, batch: Batch, out: Float32[Tensor, "n d"], spans: Sequence[Span]) -> tuple[int, float]:
        """Embed all spans into `out`; returns how many masks were put on, and the seconds that took."""
        began = time.perf_counter()
        together = self._find_together(spans)
        swaps, mixes = 0, bool(together)
        worn: dict[str, WearableMask] = {}
        in_slots: dict[str, WearableMask] = {}
        if len(spans) > 1 and not (mixes and self._mixed.all_linear):
            of = together or spans
            worn = {span.mask.key: span.mask for span in of if span.mask is not None and not span.mask.patched}
            # A slot that is there costs least; one more is written only where that is cheaper (costs.py).
            all_in_slots = not mixes or self._mixed.wants_slots
            in_slots = {key: mask for key, mask in worn.items() if all_in_slots or self._slots.has(key)}
            written = self._wardrobe.bring_all(in_slots.values())
            if written is None:
                mixes = False
            else:
                swaps = written
        swap_s = time.perf_counter() - began
        if mixes and self._run_mixed(batch.rows, out, together, in_slots):
            swaps += len(worn) - len(in_slots)
            spans = [span for span in spans if span not in together]
        for span in spans:
            began = time.perf_counter()
            swaps += self._wardrobe.wear(span.mask) if self._graphs is None else self._wardrobe.bring(span.mask)
            swap_s += time.perf_counter() - began
            out[span.start : span.stop] = self._run_one(span.mask, batch.rows[span.start : span.stop])
        return swaps, swap_s

    def _find_together(self, spans: Sequence[Span]) -> list[Span]:
        """The spans of a batch that one forward runs; empty where each has its own."""
        if not self._mixes or len(spans) < 2:
            return []
        found = [span for span in spans if not self._runs_alone(span)]
        return found if len(found) > 1 else []

    def _runs_alone(self, span: Span) -> bool:
        """Whether a span has a forward of its own beside others that share one: costs.py, and no slot to write."""
        rows, patched = (span.stop - span.start) * self._rows_of_image, span.mask is None or span.mask.patched
        if self._costs is None or not forward_pays(rows, patched, self._mixed.corrects):
            return False
        return patched or (span.mask is not None and self._slots.has(span.mask.key))

    def _run_one(self, mask: WearableMask | None, x: Tensor) -> Float[Tensor, "n d"]:
        """One forward through a mask that is worn or, with graphs, in its slot."""
        if self._graphs is None:
            return self.backbone.model(x)
        place = None if mask is None else self._slots.slot_of(mask)
        return self._graphs.run(place, x, lambda: self._wardrobe.wear(mask), self.backbone.model)

    def _run_mixed(
        self, x: Tensor, out: Float32[Tensor, "n d"], spans: Sequence[Span], in_slots: Mapping[str, WearableMask]
    ) -> bool:
        """Embed spans in one forward; False if the model does not allow it. Rows of no span are left as they are."""
        placed = [span._replace(weights=self._find_weights(span.mask, in_slots)) for span in close_up(spans)]
        whole = placed[-1].stop == len(x)
        rows = x if whole else torch.cat([x[span.start : span.stop] for span in spans])
        try:
            if self._graphs is not None and self._mixed.all_linear:
                self._mixed.take(placed, self._graphs.size_for(rows) or len(rows))
                forward = partial(self._mixed.forward, self.backbone.model)
                done = self._graphs.run("mixed", rows, self._wardrobe.reset, forward)
            else:
                self._wardrobe.reset()
                done = self._mixed.run(self.backbone.model, rows, placed)
        except Unsplittable as error:
            LOG.warning("batches that mix masks run segment by segment: %s", error)
            self._mixes = False
            return False
        if whole:
            out[:] = done
        else:
            for span, at in zip(spans, placed, strict=True):
                out[span.start : span.stop] = done[at.start : at.stop]
        return True

    def _find_weights(self, mask: WearableMask | None, in_slots: Mapping[str, WearableMask]) -> Weights | None:
        """Where a mixed batch finds the weights of a mask; see `Span`."""
        if mask is None or self._mixed.all_linear:
            return self._theta.views
        return self._slots.views_of(mask) if mask.key in in_slots else None

    def _find_worn_alike(self, mask: TaskMask) -> WearableMask | None:
        """What was made of another file with the same bits and state."""
        with self._lock:
            return self._worn_alike.get(key_of(mask)) if self._worn_alike else None

    def _find_masks(
        self, n_rows: int, segments: Sequence[Segment]
    ) -> tuple[dict[str, WearableMask], dict[str, PreparedMap]]:
        """The prepared masks of a batch and their maps, taken once: a release from now on does not touch it."""
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
            maps = {digest: self._maps[digest] for digest in wanted if digest in self._maps} if self._maps else {}
            released = [key for key in released if key not in self._worn_alike]
        for key in released:
            self._slots.drop(key)
        if missing:
            raise NotReady(f"mask {missing[0]} is not prepared")
        return masks, maps
