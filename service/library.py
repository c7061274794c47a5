"""Holds masks and cascades of the registry in host memory, checked, within a byte budget; each is loaded once.

A request holds the digests that it uses while it uses them. When the budget is exceeded, what nobody holds and nobody
pinned is evicted, the least recently used first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.registry.base import CASCADE, Registry, blob_of_version
from service.registry.within import within
from smn_core.cascade import file as cascadefile
from smn_core.cascade.cascade import Cascade
from smn_core.engine import MaskHolder
from smn_core.errors import SMNError
from smn_core.mask import Head, TaskMask
from smn_core.maskfile import parse_mask, with_bits
from smn_core.parents import parent_of


@dataclass
class Shelf:
    """One mask with its classifier, or one cascade's router and fusion, in host memory or on its way there."""

    cascade: Cascade | None = None
    head: Head | None = None
    loading: asyncio.Task[None] | None = None
    bytes: int = 0
    holders: int = 0
    warnings: list[str] = field(default_factory=list)


Blob = bytes
Prepare = Callable[[str, Shelf, Blob, Blob | None], None]
"""Fills the shelf of a digest from its file, and from that of its parent where it has one, in a thread."""
FETCHERS = 16
FETCH_WITHIN_S = 10.0
"""How long a file may take from the registry, however it comes."""


class Library:
    """Masks and cascades of the engine's backbone by digest. Lives on one event loop; threads fetch and check blobs.

    Args:
        budget_bytes: for masks in host memory; those in use and those pinned may exceed it.
        heard: called with the seconds that each load took.
    """

    def __init__(
        self, registry: Registry, engine: MaskHolder, budget_bytes: int, heard: Callable[[float], None] = lambda _: None
    ) -> None:
        self._registry, self._engine, self._budget, self._heard = registry, engine, budget_bytes, heard
        self._shelves: OrderedDict[str, Shelf] = OrderedDict()
        self._pins: Mapping[str, tuple[str, ...]] = {}
        # Fetching waits, and has threads of its own: values that come slowly must not keep others from being prepared.
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="smn-fetch")
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="smn-load")

    @property
    def bytes(self) -> int:
        """Host memory of all masks and cascades."""
        return sum(shelf.bytes for shelf in self._shelves.values())

    @property
    def cascade_bytes(self) -> int:
        """Of `bytes`, what routers, fusions and classifiers of cascades take."""
        return sum(shelf.bytes for shelf in self._shelves.values() if shelf.cascade is not None)

    @property
    def count(self) -> int:
        return len(self._shelves)

    @asynccontextmanager
    async def hold(self, *digests: str) -> AsyncIterator[list[str]]:
        """Load masks, side by side, and keep them in memory inside the block. Yields their warnings, each once.

        Raises:
            NotFound, Unavailable: as the registry.
            InvalidMask: what the registry holds is no mask of this backbone.
        """
        async with self._held(digests, self._prepare) as shelves:
            yield list(dict.fromkeys(warning for shelf in shelves for warning in shelf.warnings))

    async def head(self, digest: str) -> Head | None:
        """The linear classifier in a mask's file; loads the mask.

        Raises:
            NotFound, Unavailable, InvalidMask: as `hold`.
        """
        async with self._held([digest], self._prepare) as (shelf,):
            return shelf.head

    @asynccontextmanager
    async def hold_cascade(self, digest: str) -> AsyncIterator[Cascade]:
        """Load a cascade without its masks, and keep it inside the block.

        Raises:
            NotFound, Unavailable: as the registry.
            InvalidCascade, WrongBackbone: what the registry holds is no cascade of this backbone.
        """
        async with self._held([digest], self._read_cascade) as (shelf,):
            assert shelf.cascade is not None
            yield shelf.cascade

    @asynccontextmanager
    async def _held(self, digests: Sequence[str], prepare: Prepare) -> AsyncIterator[list[Shelf]]:
        shelves = {digest: self._shelves.setdefault(digest, Shelf()) for digest in digests}
        for digest, shelf in shelves.items():
            shelf.holders += 1
            self._shelves.move_to_end(digest)
        try:
            absent = {digest: shelf for digest, shelf in shelves.items() if not self._is_ready(digest, shelf)}
            await asyncio.gather(*(self._load(digest, shelf, prepare) for digest, shelf in absent.items()))
            yield list(shelves.values())
        finally:
            for digest, shelf in shelves.items():
                shelf.holders -= 1
                self._tidy(digest, shelf)

    def _is_ready(self, digest: str, shelf: Shelf) -> bool:
        """The engine has a mask a moment before its shelf is filled: what is still loading is not ready."""
        return shelf.loading is None and (shelf.cascade is not None or self._engine.ready(digest))

    @asynccontextmanager
    async def _held_cascade_of(self, reference: str) -> AsyncIterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """The cascade that a reference means now, if it means one, held inside the block, and the masks."""
        if not reference.startswith(CASCADE):
            yield (), (self._registry.resolve("masks", reference).digest,)
            return
        digest = self._registry.resolve("cascades", reference.removeprefix(CASCADE)).digest
        async with self.hold_cascade(digest) as cascade:
            yield (digest,), cascade.masks

    async def masks_of(self, reference: str) -> tuple[str, ...]:
        """The masks that a reference means now; those of `cascade:REF` are root and experts."""
        async with self._held_cascade_of(reference) as (_, masks):
            return masks

    async def pin(self, references: Sequence[str]) -> None:
        """Load what these references mean now and keep it whatever the budget, in place of what they meant before.

        A reference whose name is gone, or whose blob cannot be read, keeps what it meant last, if that is still loaded.

        Raises:
            SMNError: one of them could not be loaded; the others are.
        """
        failed: SMNError | None = None
        pins = dict(self._pins)
        for reference in references:
            try:
                async with self._held_cascade_of(reference) as (cascades, masks), self.hold(*masks):
                    pins[reference] = (*cascades, *masks)
                    self._pins = pins
            except SMNError as error:
                failed = error
        self._evict()
        if failed is not None:
            raise failed

    async def decode(self, mask: TaskMask) -> TaskMask:
        """The mask with its bits, decoded where masks are prepared. Nothing is kept.

        Raises:
            InvalidMask, WrongBackbone: as `with_bits`.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, with_bits, mask, self._engine.backbone)

    def close(self) -> None:
        for threads in (self._fetchers, self._threads):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _load(self, digest: str, shelf: Shelf, prepare: Prepare) -> None:
        """Load once for all who wait. A client that hangs up does not stop the load for the others."""
        if shelf.loading is None:
            shelf.loading = asyncio.create_task(self._fetch(digest, shelf, prepare))
            shelf.loading.add_done_callback(lambda _: self._loaded(digest, shelf))
        await asyncio.shield(shelf.loading)

    def _loaded(self, digest: str, shelf: Shelf) -> None:
        shelf.loading = None
        self._tidy(digest, shelf)

    def _tidy(self, digest: str, shelf: Shelf) -> None:
        """Remove the shelf of a load that failed. A load that still runs keeps its shelf, whoever waits."""
        if shelf.holders == 0 and shelf.loading is None and not self._is_ready(digest, shelf):
            self._shelves.pop(digest, None)
        self._evict()

    async def _fetch(self, digest: str, shelf: Shelf, prepare: Prepare) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        data, parent = await loop.run_in_executor(self._fetchers, self._read, digest)
        await loop.run_in_executor(self._threads, prepare, digest, shelf, data, parent)
        self._heard(loop.time() - began)

    def _read(self, digest: str) -> tuple[Blob, Blob | None]:
        with within(FETCH_WITHIN_S):
            data = blob_of_version(self._registry, digest)
            parent = parent_of(data)
            return data, blob_of_version(self._registry, parent) if parent is not None else None

    def _prepare(self, digest: str, shelf: Shelf, data: Blob, parent: Blob | None) -> None:
        mask = parse_mask(data, self._engine.backbone.layout, lambda _: parent)
        shelf.warnings, shelf.head = self._engine.prepare(mask), mask.head
        shelf.bytes = self._engine.bytes_of(digest) + (mask.head.nbytes if mask.head is not None else 0)

    def _read_cascade(self, _: str, shelf: Shelf, data: Blob, __: Blob | None) -> None:
        cascade = cascadefile.parse_cascade(data)
        cascadefile.check_fits(cascade, self._engine.backbone)
        shelf.bytes, shelf.cascade = cascade.resident_bytes(self._engine.backbone.n_features), cascade

    def _evict(self) -> None:
        total, pinned = self.bytes, {digest for digests in self._pins.values() for digest in digests}
        for digest, shelf in list(self._shelves.items()):
            if total <= self._budget:
                return
            if shelf.holders == 0 and digest not in pinned and shelf.loading is None:
                if shelf.cascade is None:
                    self._engine.release(digest)
                del self._shelves[digest]
                total -= shelf.bytes
