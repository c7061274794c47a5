"""The process: everything it holds, its start and its end, and which requests are in work.

What one request goes through is in `embedding.py`, what listens on the socket in `listen.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from service.admission import Admission
from service.console.gallery import Gallery
from service.console.seen import Seen
from service.decoding.pool import DecodePool
from service.embedder import Embedder
from service.registry.base import Registry
from service.settings import Settings
from service.spaces import Spaces
from service.telemetry import Metrics, log_health
from smn_core.backbone import Backbone
from smn_core.errors import Unavailable
from smn_core.images import ImageReader

CLERKS = 4
MAPS = 2
"""Maps that are made at once; each holds a core for seconds."""
DRAINING = "the server is draining: send the request again, another one will take it"


class Server:
    """Everything one process holds; made once by `create_app`, closed once at its end."""

    def __init__(self, settings: Settings, embedder: Embedder, registry: Registry, metrics: Metrics) -> None:
        self.settings, self.embedder, self.registry, self.metrics = settings, embedder, registry, metrics
        self.admission = Admission(settings.queue_images)
        self.body_bytes = Admission(max(settings.body_bytes, settings.max_body_bytes), "bytes of bodies")
        self.reader = ImageReader(self.backbone.preprocess, settings.max_pixels)
        self.spaces = Spaces(self.backbone, registry)
        self.decoding = DecodePool(
            self.backbone.preprocess,
            settings.max_pixels,
            n_workers=settings.decoders,
            memory_bytes=settings.decode_bytes,
            cpu_s=settings.decode_cpu_s,
            count_killed=metrics.decode_killed.inc,
        )
        # For what comes decoded, and for uploaded files: bounded by the size of their bodies.
        self.decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="smn-decode")
        # Threads of their own: a registry that hangs must not keep images from being decoded.
        self.clerks = ThreadPoolExecutor(CLERKS, thread_name_prefix="smn-registry")
        # And writers from readers: uploads that wait for a lock must not keep lists from being read.
        self.scribes = ThreadPoolExecutor(CLERKS, thread_name_prefix="smn-registry-write")
        self.gallery = self._gallery_of(settings)
        self.seen = Seen()
        self.maps = Admission(MAPS, "maps")
        self.draining = False
        self.ready = False
        self.in_flight = 0
        self._working: set[asyncio.Task[Any]] = set()
        self._given_up = False

    @property
    def backbone(self) -> Backbone:
        return self.embedder.backbone

    async def start(self) -> None:
        """Look after the registry, start the decode workers and the embedder; the server is ready afterwards.

        Raises:
            SMNError: as `Embedder.start`; Unavailable, no worker starts.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.clerks, self.registry.watch, log_health)
        await asyncio.gather(self.decoding.start(), self.embedder.start())
        if self.gallery is not None:
            await self.gallery.start()
        self.ready = True

    def close(self) -> None:
        self.embedder.close()
        self.decoding.close()
        if self.gallery is not None:
            self.gallery.close()
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.clerks.shutdown(wait=False, cancel_futures=True)
        self.scribes.shutdown(wait=False, cancel_futures=True)
        self.registry.close()

    def _gallery_of(self, settings: Settings) -> Gallery | None:
        if settings.gallery is None:
            return None
        return Gallery(
            Path(settings.gallery),
            self.decoders,
            max_bytes=settings.max_body_bytes,
            max_pixels=settings.max_pixels,
            memory_bytes=settings.decode_bytes,
            cpu_s=settings.decode_cpu_s,
        )

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Count the block as work in flight. Refuses it while the server drains or starts.

        Raises:
            Unavailable: 503.
        """
        if self.draining:
            raise Unavailable(DRAINING)
        if not self.ready:
            raise Unavailable("the server is starting")
        task = asyncio.current_task()
        assert task is not None
        self._working.add(task)
        self.in_flight += 1
        try:
            yield
        except asyncio.CancelledError as error:
            if not self._given_up:
                raise
            task.uncancel()
            raise Unavailable(DRAINING) from error
        finally:
            self.in_flight -= 1
            self._working.discard(task)

    def give_up(self) -> None:
        """At the end of a drain: answer 503 to what is still in work, such as a request whose body does not arrive."""
        self._given_up = True
        for task in self._working:
            task.cancel()


async def the_server(request: Request) -> Server:
    """Dependency: the server whose application answers this request."""
    server: Server = request.app.state.server
    return server


TheServer = Annotated[Server, Depends(the_server)]
"""A parameter of this type is the server; no handler looks for it in the application's state."""
