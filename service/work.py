"""The path of a request through the server: admit, resolve, decode beside loading, queue, run; with its deadline.

`routes -> work -> (images | library) -> (passes ->) batcher -> engine`
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog
import torch
from fastapi import Request
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from service.batcher import Batcher
from service.bodies import Images, to_inputs
from service.errors import Rejected
from service.library import Library
from service.passes import Passes
from service.registry.base import Registry, Resolved
from service.settings import Settings
from service.telemetry import Metrics, Record
from smn_core.cascade import Cascade
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument, SMNError, Unavailable
from smn_core.images import ImageReader
from smn_core.offline import require_dimensions

log = structlog.get_logger("smn.work")
T = TypeVar("T")
CLERKS = 4
MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Wanted:
    """What a request asks for: a mask, or a cascade in a mode, or neither; and how many components of it."""

    mask: str | None = None
    cascade: str | None = None
    mode: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class Target:
    """What the references of a request meant; a cascade with its file's contents and the mode to run in."""

    mask: Resolved | None = None
    cascade: Resolved | None = None
    found: Cascade | None = None
    mode: str = ""


@dataclass(frozen=True)
class Embedding:
    """Embeddings of a request, what they went through, and the masks' warnings.

    `chosen` are the experts that a conditional cascade picked, from 0, None for everything else.
    """

    z: Float32[ndarray, "n d"]
    mask: Resolved | None
    warnings: list[str]
    cascade: Resolved | None = None
    mode: str | None = None
    chosen: Int64[ndarray, "n"] | None = None

    @property
    def digest(self) -> str:
        """Of the mask or the cascade; "root" of neither."""
        used = self.cascade or self.mask
        return used.digest if used is not None else "root"


class Server:
    """Everything one process holds; made once by `create_app`, closed once at its end."""

    def __init__(self, settings: Settings, engine: Engine, registry: Registry) -> None:
        self.settings, self.engine, self.registry = settings, engine, registry
        self.metrics = Metrics()
        self.library = Library(registry, engine, settings.cache_bytes, self.metrics.load_seconds.observe)
        self.batcher = Batcher(engine, settings.batch_size, settings.queue_images, self.metrics.batch)
        self.passes = Passes(self.library, self.batcher, self.metrics.queue_seconds.observe)
        self.reader = ImageReader(engine.backbone.preprocess, settings.max_pixels)
        self.decoders = ThreadPoolExecutor(settings.decode_workers, thread_name_prefix="smn-decode")
        # Its own threads: a registry that hangs must not keep images from being decoded.
        self.clerks = ThreadPoolExecutor(CLERKS, thread_name_prefix="smn-registry")
        self.draining = False
        self.ready = False
        self.in_flight = 0
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Warm up, and load what is to be resident; ready afterwards."""
        await self.warm_up()
        for reference in self.settings.preload:
            async with self.library.hold(*await self.library.masks_of(reference)):
                pass
        await self.library.pin(self.settings.pin)
        if self.settings.pin:
            self._following = asyncio.create_task(self._follow_pins())
        self.ready = True

    async def warm_up(self) -> None:
        """One forward on the engine's own thread. That of `load_backbone` ran on another, and a GPU's libraries keep
        their handles by thread; and an engine that cannot run is found before the server says it is ready.
        """
        await self.batcher.embed(None, torch.zeros(1, 3, *self.reader.input_px))

    async def _follow_pins(self) -> None:
        """A pinned name stays pinned through uploads and rollbacks: whenever names change, load what it means now."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        self.registry.listen(lambda: loop.call_soon_threadsafe(changed.set))
        changed.set()  # what changed before this listened
        while True:
            await changed.wait()
            changed.clear()
            try:
                await self.library.pin(self.settings.pin)
            except SMNError as error:
                log.warning("pin", error=str(error))

    def close(self) -> None:
        if self._following is not None:
            self.registry.listen(lambda: None)
            self._following.cancel()
        self.batcher.stop()
        self.passes.close()
        self.library.close()
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.clerks.shutdown(wait=False, cancel_futures=True)
        self.registry.close()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Counts work in flight; refuses it while draining or starting.

        Raises:
            Unavailable: 503.
        """
        if self.draining:
            raise Unavailable("the server is draining: send the request again, another one will take it")
        if not self.ready:
            raise Unavailable("the server is starting")
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def embed(self, request: Request, read: Callable[[], Awaitable[Images]], wanted: Wanted) -> Embedding:
        """Embed what `read` finds in the request, through what its references mean now.

        Raises:
            Rejected: 400 more dimensions than there are, 504 past the deadline, 499 where the client hung up; and what
                `read` raises.
            QueueFull, NotFound, Unavailable, InvalidImage, InvalidMask, InvalidCascade: as their sources.
        """
        record: Record = request.state.record
        self.deadline_s(request)  # one that cannot be read is refused before anything else
        async with self.working():
            # One place before anything is read; the others once it is known how many images there are.
            with self.batcher.admit(1):
                target = await self.in_time(request, lambda: self._check(self._resolve(wanted), wanted))
                images = await self.in_time(request, read)
                with self.batcher.admit(max(0, images.count - 1)):
                    return await self.in_time(request, lambda: until_gone(request, self._run(record, images, target)))

    def _resolve(self, wanted: Wanted) -> Target:
        if wanted.cascade is not None:
            return Target(cascade=self.registry.resolve("cascades", wanted.cascade))
        return Target(mask=self.registry.resolve("masks", wanted.mask) if wanted.mask is not None else None)

    async def _check(self, target: Target, wanted: Wanted) -> Target:
        """Whether it can be embedded as it is wanted, before anything of it is read; loads a cascade, not its masks."""
        width = self.engine.backbone.n_features
        if target.cascade is None:
            with refusing("too_many_dimensions", "dimensions"):
                require_dimensions(wanted.dimensions, width)
            return target
        async with self.library.hold_cascade(target.cascade.digest) as found:
            with refusing("no_such_mode", "mode"):
                mode = found.choose_mode(wanted.mode)
            with refusing("too_many_dimensions", "dimensions"):
                found.choose_dimensions(wanted.dimensions, mode, width)
        return replace(target, found=found, mode=mode)

    async def _run(self, record: Record, images: Images, target: Target) -> Embedding:
        """Decode and load side by side, then queue and run."""
        used = target.cascade or target.mask
        record.facts |= {"images": images.count, "digest": used.digest if used is not None else None}
        decoding = asyncio.create_task(self._decode(record, images))
        try:
            if target.found is not None:
                done = await self.passes.run(record, target.found, target.mode, decoding)
                return Embedding(done.z, None, done.warnings, target.cascade, target.mode, done.chosen)
            if target.mask is None:
                timing, warnings = await self.batcher.embed(None, await decoding), list[str]()
            else:
                began = time.perf_counter()
                async with self.library.hold(target.mask.digest) as warnings:
                    record.stages["load"] = time.perf_counter() - began
                    timing = await self.batcher.embed(target.mask.digest, await decoding)
        finally:
            decoding.cancel()
        record.stages |= {"queue": timing.queue_s, "swap": timing.swap_s, "forward": timing.forward_s}
        self.metrics.queue_seconds.observe(timing.queue_s)
        return Embedding(timing.embeddings, target.mask, warnings)

    async def _decode(self, record: Record, images: Images) -> Float32[Tensor, "n 3 h w"]:
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        x = await loop.run_in_executor(self.decoders, to_inputs, images, self.reader)
        record.stages["decode"] = time.perf_counter() - began
        self.metrics.decode_seconds.observe(record.stages["decode"])
        return x

    async def in_time(self, request: Request, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for work until the request is as old as it may become.

        Raises:
            Rejected: 504; 400, a deadline that cannot be read.
        """
        record: Record = request.state.record
        try:
            limit_s = self.deadline_s(request)
            async with asyncio.timeout(max(0.0, limit_s - (time.perf_counter() - record.began))):
                return await work()
        except TimeoutError as error:
            raise Rejected(504, "deadline", f"no answer within {1e3 * limit_s:.0f} ms") from error

    def deadline_s(self, request: Request) -> float:
        """Seconds that a request may take: the client's own deadline or the server's, whichever is first.

        Raises:
            Rejected: 400, an X-Timeout-Ms that is no positive number.
        """
        text = request.headers.get("x-timeout-ms")
        if text is None:
            return self.settings.timeout_ms / 1e3
        text = text.strip()
        if not MILLISECONDS.fullmatch(text):
            raise Rejected(
                400, "invalid_timeout", f"X-Timeout-Ms {text[:32]!r} is not a number of milliseconds", "X-Timeout-Ms"
            )
        return min(self.settings.timeout_ms, int(text)) / 1e3


@contextmanager
def refusing(code: str, param: str) -> Iterator[None]:
    """Name the parameter that an argument came from: 400."""
    try:
        yield
    except InvalidArgument as error:
        raise Rejected(400, code, str(error), param) from error


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work, but drop it when the client hangs up: nobody will read the answer.

    Raises:
        Rejected: 499.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Rejected(499, "client_gone", "the client hung up")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()


async def _hung_up(request: Request) -> None:
    """Returns when the client is gone; to be called after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
