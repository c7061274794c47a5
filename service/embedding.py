"""One request's path: admit, resolve, check, decode beside loading, run; with its deadline.

`routes/embed -> bodies -> admission -> images -> embedding -> embedder -> passes -> batcher -> engine -> respond`
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from fastapi import Request
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from service.bodies import Images, from_array
from service.embedder import Through
from service.errors import Rejected
from service.record import Record
from service.registry.base import Resolved, parse_reference
from service.security import Caller
from service.server import Server
from smn_core.backbone import require_dimensions
from smn_core.errors import InvalidArgument

T = TypeVar("T")
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


@asynccontextmanager
async def begun(server: Server, request: Request, caller: Caller) -> AsyncIterator[None]:
    """A request that embeds, inside the block: it has a deadline and a place before its body is read.

    Raises:
        Rejected: 400, a deadline that cannot be read.
        QueueFull, Unavailable: as their sources.
    """
    record: Record = request.state.record
    record.who = caller.who
    record.ends = record.began + deadline_s(server, request)  # first of all: a deadline that cannot be read is refused
    async with server.working():
        with server.admission.admit(1, caller.who):
            yield


async def embed(
    server: Server, request: Request, caller: Caller, read: Callable[[], Awaitable[Images]], wanted: Wanted
) -> Embedding:
    """Embed what `read` finds in the request, through what its references mean now. To be called inside `begun`.

    Raises:
        Rejected: 403 a reference that the caller's key is not for, 400 more dimensions than there are, 504 past the
            deadline, 499 where the client hung up; and what `read` raises.
        QueueFull, NotFound, Unavailable, InvalidImage, InvalidMask, InvalidCascade: as their sources.
    """
    for reference in (wanted.mask, wanted.cascade):
        if reference is not None:
            caller.require_name(parse_reference(reference)[0])
    record: Record = request.state.record
    target = await in_time(server, request, lambda: _check(server, _resolve(server, wanted), wanted))
    images = await in_time(server, request, read)
    # `begun` took one place before the body was read; the others follow once the number of images is known.
    with server.admission.admit(max(0, images.count - 1), caller.who):
        return await in_time(server, request, lambda: until_gone(request, _run(server, record, images, target)))


def _resolve(server: Server, wanted: Wanted) -> Target:
    if wanted.cascade is not None:
        return Target(cascade=server.registry.resolve("cascades", wanted.cascade))
    return Target(mask=server.registry.resolve("masks", wanted.mask) if wanted.mask is not None else None)


async def _check(server: Server, target: Target, wanted: Wanted) -> Target:
    """Check mode and dimensions before the body is read. Loads a cascade for that, but none of its masks."""
    width = server.backbone.n_features
    if target.cascade is None:
        with refusing("too_many_dimensions", "dimensions"):
            require_dimensions(wanted.dimensions, width)
        return target
    async with server.embedder.hold_cascade(target.cascade.digest) as found:
        with refusing("no_such_mode", "mode"):
            mode = found.choose_mode(wanted.mode)
        with refusing("too_many_dimensions", "dimensions"):
            found.choose_dimensions(wanted.dimensions, mode, width)
    return replace(target, mode=mode)


async def _run(server: Server, record: Record, images: Images, target: Target) -> Embedding:
    """Decode while the embedder loads what it needs, then embed."""
    used = target.cascade or target.mask
    record.facts |= {"images": images.count, "digest": used.digest if used is not None else None}
    mask, cascade = (found.digest if found else None for found in (target.mask, target.cascade))
    decoding = asyncio.create_task(_decode(server, record, images))
    try:
        done = await server.embedder.embed(record, Through(mask, cascade, target.mode), decoding)
    finally:
        decoding.cancel()
    mode = target.mode if target.cascade is not None else None
    if not np.isfinite(done.z).all():
        row = int(np.flatnonzero(~np.isfinite(done.z).all(1))[0])
        # The backbone gave a finite vector when it was loaded; through a mask it may overflow a narrow type.
        cause = "" if used is None else f", or {used.name} is too much for the server's number type"
        message = f"the embedding of image {row} is not finite: its pixels are far from any photo's{cause}"
        raise Rejected(422, "not_finite", message)
    return Embedding(done.z, target.mask, done.warnings, target.cascade, mode, done.chosen)


async def _decode(server: Server, record: Record, images: Images) -> Float32[Tensor, "n 3 h w"]:
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    if images.array is not None:
        x = await loop.run_in_executor(server.decoders, from_array, images.array, server.reader)
    else:
        pixels = await server.decoding.decode(record.who, images.encoded)
        x = await loop.run_in_executor(server.decoders, server.reader.normalise, pixels)
    record.stages["decode"] = time.perf_counter() - began
    server.metrics.decode_seconds.observe(record.stages["decode"])
    return x


async def in_time(server: Server, request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Wait for work until the request is as old as it may become.

    Raises:
        Rejected: 504; 400, a deadline that cannot be read.
    """
    record: Record = request.state.record
    try:
        limit_s = deadline_s(server, request)
        async with asyncio.timeout(max(0.0, limit_s - (time.perf_counter() - record.began))):
            return await work()
    except TimeoutError as error:
        raise Rejected(504, "deadline", f"no answer within {1e3 * limit_s:.0f} ms") from error


def deadline_s(server: Server, request: Request) -> float:
    """Seconds that a request may take: the client's own deadline or the server's, whichever is first.

    Raises:
        Rejected: 400, an X-Timeout-Ms that is no positive number.
    """
    text = request.headers.get("x-timeout-ms")
    if text is None:
        return server.settings.timeout_ms / 1e3
    text = text.strip()
    if not MILLISECONDS.fullmatch(text):
        raise Rejected(
            400, "invalid_timeout", f"X-Timeout-Ms {text[:32]!r} is not a number of milliseconds", "X-Timeout-Ms"
        )
    return min(server.settings.timeout_ms, int(text)) / 1e3


@contextmanager
def refusing(code: str, param: str) -> Iterator[None]:
    """Turn an InvalidArgument of the block into a 400 that names the parameter."""
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
        # The request ends once its rows have left the queue, but does not hang on work that will not stop.
        await asyncio.wait({working, gone}, timeout=LETTING_GO_S)


async def _hung_up(request: Request) -> None:
    """Return when the client is gone. To be called once the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
