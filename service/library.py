"""Registry -> verified masks in host memory: loaded once however many ask, within a byte budget.

A mask is absent, fetching, ready or failed. Requests hold the digest they resolved while they use it; what nobody holds
and nobody pinned goes out least recently used first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.registry.base import Registry
from smn_core.engine import Engine
from smn_core.maskfile import from_bytes


@dataclass
class Shelf:
    """One mask in host memory, or on its way there."""

    loading: asyncio.Task[None] | None = None
    bytes: int = 0
    holders: int = 0
    pinned: bool = False
    warnings: list[str] = field(default_factory=list)


class Library:
    """Masks of the engine's backbone by digest. Lives on one event loop; blobs are fetched and checked in threads.

    Args:
        budget_bytes: for masks in host memory; those in use may exceed it.
        heard: called with the seconds that each load took.
    """

    def __init__(
        self, registry: Registry, engine: Engine, budget_bytes: int, heard: Callable[[float], None] = lambda _: None
    ) -> None:
        self._registry, self._engine, self._budget, self._heard = registry, engine, budget_bytes, heard
        self._shelves: OrderedDict[str, Shelf] = OrderedDict()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="smn-load")

    @property
    def bytes(self) -> int:
        """Host memory of all masks."""
        return sum(shelf.bytes for shelf in self._shelves.values())

    @property
    def count(self) -> int:
        return len(self._shelves)

    @asynccontextmanager
    async def hold(self, digest: str) -> AsyncIterator[list[str]]:
        """Ready inside the block, and not evicted; yields the mask's warnings.

        Raises:
            NotFound, Unavailable: as the registry.
            InvalidMask: what the registry holds is no mask of this backbone.
        """
        shelf = self._shelves.setdefault(digest, Shelf())
        shelf.holders += 1
        self._shelves.move_to_end(digest)
        try:
            if not self._engine.ready(digest):
                await self._load(digest, shelf)
            yield shelf.warnings
        finally:
            shelf.holders -= 1
            self._tidy(digest, shelf)

    async def pin(self, digest: str) -> None:
        """Load a mask and keep it whatever the budget."""
        async with self.hold(digest):
            self._shelves[digest].pinned = True

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _load(self, digest: str, shelf: Shelf) -> None:
        """Load once for all who wait; one of them hanging up does not stop it for the others."""
        if shelf.loading is None:
            shelf.loading = asyncio.create_task(self._fetch(digest, shelf))
            shelf.loading.add_done_callback(lambda _: self._loaded(digest, shelf))
        await asyncio.shield(shelf.loading)

    def _loaded(self, digest: str, shelf: Shelf) -> None:
        shelf.loading = None
        self._tidy(digest, shelf)

    def _tidy(self, digest: str, shelf: Shelf) -> None:
        """Take away the shelf of a load that failed; a load that goes on without waiters keeps its shelf."""
        if shelf.holders == 0 and shelf.loading is None and not self._engine.ready(digest):
            self._shelves.pop(digest, None)
        self._evict()

    async def _fetch(self, digest: str, shelf: Shelf) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        shelf.warnings = await loop.run_in_executor(self._threads, self._prepare, digest)
        shelf.bytes = self._engine.bytes_of(digest)
        self._heard(loop.time() - began)

    def _prepare(self, digest: str) -> list[str]:
        return self._engine.prepare(from_bytes(self._registry.blob(digest), self._engine.backbone.layout))

    def _evict(self) -> None:
        total = self.bytes
        for digest, shelf in list(self._shelves.items()):
            if total <= self._budget:
                return
            if shelf.holders == 0 and not shelf.pinned and shelf.loading is None:
                self._engine.release(digest)
                del self._shelves[digest]
                total -= shelf.bytes
