"""The path of a request through the server: admit, resolve, decode beside loading, queue, run; with its deadline.

`routes -> work -> images -> embedder: (library | passes ->) batcher -> engine, here or on a replica`
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from service.admission import Admission
from service.bodies import Images, to_inputs
from service.embedder import Embedder, Through
from service.errors import Rejected
from service.registry.base import Registry, Resolved
from service.settings import Settings
from service.telemetry import Metrics, Record
from smn_core.backbone import Backbone, require_dimensions
from smn_core.errors import InvalidArgument, Unavailable
from smn_core.images import ImageReader

T = TypeVar("T")
CLERKS = 4
DRAINING = "the server is draining: send the request again, another one will take it"
LETTING_GO_S = 1.0
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
    """What the references of a request meant; a cascade with the mode to run in."""

    mask: Resolved | None = None
    cascade: Resolved | None = None
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

    def __init__(self, settings: Settings, embedder: Embedder, registry: Registry, metrics: Metrics) -> None:
        self.settings, self.embedder, self.registry, self.metrics = settings, embedder, registry, metrics
        self.admission = Admission(settings.queue_images)
        self.reader = ImageReader(self.backbone.preprocess, settings.max_pixels)
        self.decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="smn-decode")
        # Its own threads: a registry that hangs must not keep images from being decoded.
        self.clerks = ThreadPoolExecutor(CLERKS, thread_name_prefix="smn-registry")
        self.draining = False
        self.ready = False
        self.in_flight = 0
        self._working: set[asyncio.Task[Any]] = set()
        self._given_up = False

    @property
    def backbone(self) -> Backbone:
        return self.embedder.backbone

    async def start(self) -> None:
        """Ready afterwards."""
        await self.embedder.start()
        self.ready = True

    def close(self) -> None:
        self.embedder.close()
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
        """At the end of a drain: who is in work still, with a body that does not come for instance, hears 503 now."""
        self._given_up = True
        for task in self._working:
            task.cancel()

    async def embed(self, request: Request, read: Callable[[], Awaitable[Images]], wanted: Wanted) -> Embedding:
        """Embed what `read` finds in the request, through what its references mean now.

        Raises:
            Rejected: 400 more dimensions than there are, 504 past the deadline, 499 where the client hung up; and what
                `read` raises.
            QueueFull, NotFound, Unavailable, InvalidImage, InvalidMask, InvalidCascade: as their sources.
        """
        record: Record = request.state.record
        record.ends = record.began + self.deadline_s(request)  # one that cannot be read is refused before anything else
        async with self.working():
            # One place before anything is read; the others once it is known how many images there are.
            with self.admission.admit(1):
                target = await self.in_time(request, lambda: self._check(self._resolve(wanted), wanted))
                images = await self.in_time(request, read)
                with self.admission.admit(max(0, images.count - 1)):
                    return await self.in_time(request, lambda: until_gone(request, self._run(record, images, target)))

    def _resolve(self, wanted: Wanted) -> Target:
        if wanted.cascade is not None:
            return Target(cascade=self.registry.resolve("cascades", wanted.cascade))
        return Target(mask=self.registry.resolve("masks", wanted.mask) if wanted.mask is not None else None)

    async def _check(self, target: Target, wanted: Wanted) -> Target:
        """Whether it can be embedded as it is wanted, before anything of it is read; loads a cascade, not its masks."""
        width = self.backbone.n_features
        if target.cascade is None:
            with refusing("too_many_dimensions", "dimensions"):
                require_dimensions(wanted.dimensions, width)
            return target
        async with self.embedder.hold_cascade(target.cascade.digest) as found:
            with refusing("no_such_mode", "mode"):
                mode = found.choose_mode(wanted.mode)
            with refusing("too_many_dimensions", "dimensions"):
                found.choose_dimensions(wanted.dimensions, mode, width)
        return replace(target, mode=mode)

    async def _run(self, record: Record, images: Images, target: Target) -> Embedding:
        """Decode, while the embedder loads what it needs; then it embeds."""
        used = target.cascade or target.mask
        record.facts |= {"images": images.count, "digest": used.digest if used is not None else None}
        mask, cascade = (found.digest if found else None for found in (target.mask, target.cascade))
        decoding = asyncio.create_task(self._decode(record, images))
        try:
            done = await self.embedder.embed(record, Through(mask, cascade, target.mode), decoding)
        finally:
            decoding.cancel()
        mode = target.mode if target.cascade is not None else None
        if not np.isfinite(done.z).all():
            row = int(np.flatnonzero(~np.isfinite(done.z).all(1))[0])
            raise Rejected(
                422, "not_finite", f"the embedding of image {row} is not finite: its pixels are far from any photo's"
            )
        return Embedding(done.z, target.mask, done.warnings, target.cascade, mode, done.chosen)

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
        # Rows that wait leave the queue before the request counts as over; no request hangs on work that will not stop.
        await asyncio.wait({working, gone}, timeout=LETTING_GO_S)


async def _hung_up(request: Request) -> None:
    """Returns when the client is gone; to be called after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
