"""Embeds with the engine of this process: loads masks while images are decoded, queues the images, runs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager

import structlog
import torch
from torch import Tensor

from service.batcher import Batcher
from service.embedder import Done, Through
from service.library import Library
from service.passes import Passes
from service.record import Record
from service.registry.base import Registry
from service.settings import Settings
from service.telemetry import Metrics, State
from smn_core.backbone import Backbone
from smn_core.cascade.cascade import Cascade
from smn_core.contextual.loop import compile_all
from smn_core.engine import Engine, MaskEngine, slots_within
from smn_core.mask import Head, TaskMask

log = structlog.get_logger("smn.local")


def engine_of(settings: Settings, backbone: Backbone) -> MaskEngine:
    """The engine that the settings ask for. It owns the backbone from then on."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    slots = settings.slots or slots_within(backbone, settings.slot_bytes)
    return Engine(backbone, slots, capacity=max(slots, settings.batch_size))


class Local:
    """See `Embedder`. Lives on one event loop."""

    def __init__(self, settings: Settings, engine: MaskEngine, registry: Registry, metrics: Metrics) -> None:
        self.engine = engine
        self.library = Library(registry, engine, settings.cache_bytes, metrics.load_seconds.observe)
        self.batcher = Batcher(engine, settings.batch_size, metrics.batch)
        self._passes = Passes(self.library, self.batcher, metrics.queue_seconds.observe)
        self._settings, self._registry, self._metrics = settings, registry, metrics
        self._following: asyncio.Task[None] | None = None
        self._compiling: asyncio.Future[None] | None = None

    @property
    def backbone(self) -> Backbone:
        return self.engine.backbone

    async def start(self) -> None:
        """Warm up, load what is to be resident, and begin to compile what masks of codec context will need."""
        await self._warm_up()
        for reference in self._settings.preload:
            async with self.library.hold(*await self.library.masks_of(reference)):
                pass
        await self.library.pin(self._settings.pin)
        if self._settings.pin:
            self._following = asyncio.create_task(self._follow_pins())
        # numba compiles what decodes codec context, or reads it from its cache: nobody waits for that but such a mask.
        self._compiling = asyncio.get_running_loop().run_in_executor(None, compile_all)

    async def _warm_up(self) -> None:
        """Run one forward on the engine's own thread.

        A GPU's libraries keep handles for each thread, and `load_backbone` ran its forward on another one. An engine
        that cannot run is found here, before the server says that it is ready.
        """
        await self.batcher.embed(None, torch.zeros(1, 3, *self.backbone.preprocess["input_size"][-2:]))

    async def _follow_pins(self) -> None:
        """Keep pinned names pinned through uploads and rollbacks: whenever names change, load what they mean now."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        self._registry.listen(lambda: loop.call_soon_threadsafe(changed.set))
        changed.set()  # for changes from before this task listened
        while True:
            await changed.wait()
            changed.clear()
            try:
                await self.library.pin(self._settings.pin)
            except Exception as error:
                # Every exception, not SMNError alone: if this task ended, pinned names would stay as they are for ever.
                log.warning("pin", error=str(error))

    async def embed(self, record: Record, through: Through, decoded: Awaitable[Tensor]) -> Done:
        """Load what is not in memory while `decoded` goes on, then queue and run."""
        if through.cascade is not None:
            async with self.library.hold_cascade(through.cascade) as cascade:
                done = await self._passes.run(record, cascade, through.mode, decoded)
            return Done(done.z, done.warnings, done.chosen)
        if through.mask is None:
            timing, warnings = await self.batcher.embed(None, await decoded, record.who), list[str]()
        else:
            began = time.perf_counter()
            async with self.library.hold(through.mask) as warnings:
                record.stages["load"] = time.perf_counter() - began
                timing = await self.batcher.embed(through.mask, await decoded, record.who)
        record.stages |= {"queue": timing.queue_s, "swap": timing.swap_s, "forward": timing.forward_s}
        self._metrics.queue_seconds.observe(timing.queue_s)
        return Done(timing.embeddings, warnings)

    def hold_cascade(self, digest: str) -> AbstractAsyncContextManager[Cascade]:
        return self.library.hold_cascade(digest)

    async def head(self, digest: str) -> Head | None:
        return await self.library.head(digest)

    async def decode(self, mask: TaskMask) -> TaskMask:
        return await self.library.decode(mask)

    async def state(self) -> State:
        memory = self.engine.memory()
        return State(
            device=str(self.backbone.device),
            slots=memory.n_slots,
            resident_masks=memory.resident_masks,
            theta_bytes=memory.theta,
            slot_bytes=memory.slots,
            mask_bytes=self.library.bytes,
            cascade_bytes=self.library.cascade_bytes,
            shelves=self.library.count,
            forms=memory.forms,
        )

    async def troubles(self) -> Sequence[str]:
        return [] if self.batcher.alive else ["the engine's thread is gone"]

    def stop(self) -> None:
        self.batcher.stop()

    def close(self) -> None:
        if self._following is not None:
            self._registry.listen(lambda: None)
            self._following.cancel()
        self.batcher.stop()
        self._passes.close()
        self.library.close()
