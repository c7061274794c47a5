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
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from service.bodies import Images, from_array
from service.embedder import Through
from service.errors import Rejected
from service.record import Record
from service.registry.base import Kind, Resolved, parse_reference
from service.registry.within import within
from service.security import Caller
from service.server import Server
from service.spaces import HEADER, Facts, expected_of, require_space
from smn_core.backbone import require_dimensions
from smn_core.errors import InvalidArgument
from smn_core.mask import Head
from smn_core.spaces import shape_space

T = TypeVar("T")
LETTING_GO_S = 1.0
MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Wanted:
    """What a request asks for: a mask, or a cascade in a mode, or neither; what is done to its vectors afterwards.

    `dimensions`, `normalize` and `kind` (int8, ...; None: floats) say in which space the answer is; who answers shapes
    the vectors so. `space` is the one that the query expects. `labels`: the request wants a classifier too.
    """

    mask: str | None = None
    cascade: str | None = None
    mode: str | None = None
    dimensions: int | None = None
    normalize: bool = False
    kind: str | None = None
    space: str | None = None
    labels: bool = False


@dataclass(frozen=True)
class Target:
    """What the references of a request meant: a cascade with the mode to run in; the space of the answer's vectors."""

    mask: Resolved | None = None
    cascade: Resolved | None = None
    mode: str = ""
    space: str = ""
    head: Head | None = None

    @property
    def used(self) -> Resolved | None:
        return self.cascade or self.mask


@dataclass(frozen=True)
class Embedding:
    """Embeddings of a request, what they went through, and the masks' warnings.

    `space` is that of the vectors once they are shaped as the request asked. `head` is there where it wanted labels.
    `chosen` are the experts that a conditional cascade picked, from 0, None for everything else.
    """

    z: Float32[ndarray, "n d"]
    mask: Resolved | None
    space: str
    warnings: list[str]
    cascade: Resolved | None = None
    mode: str | None = None
    chosen: Int64[ndarray, "n"] | None = None
    head: Head | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What every answer with vectors carries: the digest of mask or cascade, "root" of neither, and the space."""
        used = self.cascade or self.mask
        return {"X-SMN-Digest": used.digest if used is not None else "root", HEADER: self.space}

    def used(self) -> dict[str, Any]:
        """`mask` and `cascade` of an answer. Experts count from 1, as `NAME.expert-1` does."""
        experts = (self.chosen + 1).tolist() if self.chosen is not None else None
        return {
            "mask": _told(self.mask) if self.mask is not None else None,
            "cascade": {**_told(self.cascade), "mode": self.mode, "experts": experts} if self.cascade else None,
        }


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
        Rejected: 403 a reference that the caller's key is not for, 400 more dimensions than there are, 412 another
            space than the request expects, 409 labels without a classifier, 504 past the deadline, 499 where the client
            hung up; and what `read` raises.
        QueueFull, NotFound, Unavailable, InvalidImage, InvalidMask, InvalidCascade: as their sources.
    """
    for reference in (wanted.mask, wanted.cascade):
        if reference is not None:
            caller.require_name(parse_reference(reference)[0])
    record: Record = request.state.record
    expected = expected_of(request, wanted.space)
    target = await in_time(server, request, lambda: _check(server, record, _resolve(server, wanted), wanted, expected))
    images = await in_time(server, request, read)
    # `begun` took one place before the body was read; the others follow once the number of images is known.
    with server.admission.admit(max(0, images.count - 1), caller.who):
        return await in_time(server, request, lambda: until_gone(request, _run(server, record, images, target)))


def _resolve(server: Server, wanted: Wanted) -> Target:
    if wanted.cascade is not None:
        return Target(cascade=server.registry.resolve("cascades", wanted.cascade))
    return Target(mask=server.registry.resolve("masks", wanted.mask) if wanted.mask is not None else None)


async def _check(server: Server, record: Record, target: Target, wanted: Wanted, expected: str | None) -> Target:
    """Check mode, dimensions, space and classifier before the body is read. Loads a cascade for that, but no masks.

    The space is that of the version that the reference meant: no later upload changes what this request runs through.
    """
    width = server.backbone.n_features
    if target.cascade is None:
        with refusing("too_many_dimensions", "dimensions"):
            require_dimensions(wanted.dimensions, width)
        vectors = await _vectors_of(server, record, "masks", target.mask) if target.mask is not None else None
        target = replace(target, space=_name_space(server, vectors, None, wanted, width))
        require_space(target.space, expected)
        if wanted.labels and target.mask is not None:
            target = replace(target, head=await server.embedder.head(target.mask.digest))
    else:
        async with server.embedder.hold_cascade(target.cascade.digest) as found:
            with refusing("no_such_mode", "mode"):
                mode = found.choose_mode(wanted.mode)
            with refusing("too_many_dimensions", "dimensions"):
                found.choose_dimensions(wanted.dimensions, mode, width)
            vectors = await _vectors_of(server, record, "cascades", target.cascade)
            server.spaces.keep(target.cascade.digest, Facts(vectors, found.mode))
            space = _name_space(server, vectors, mode, wanted, found.width(mode, width))
            require_space(space, expected)
            target = replace(target, mode=mode, space=space, head=found.heads.get(mode) if wanted.labels else None)
    if wanted.labels and (target.head is None or not target.head.classes):
        raise Rejected(409, "no_head", _say_no_head(server, target), "cascade" if target.cascade else "mask")
    return target


def _name_space(server: Server, vectors: str | None, mode: str | None, wanted: Wanted, width: int) -> str:
    cut = wanted.dimensions if wanted.dimensions is not None and wanted.dimensions < width else None
    space = server.spaces.name(vectors)
    return shape_space(space, mode=mode, dimensions=cut, normalize=wanted.normalize, kind=wanted.kind)


async def _vectors_of(server: Server, record: Record, kind: Kind, of: Resolved) -> str:
    """What makes the vectors of a version; of a record that does not say it, from its file, in a thread."""
    known = server.spaces.told(of)
    if known is not None:
        return known

    def read() -> str:
        with within(record.ends - time.perf_counter()):
            return server.spaces.vectors(kind, of)

    return await asyncio.get_running_loop().run_in_executor(server.clerks, read)


def _say_no_head(server: Server, target: Target) -> str:
    if target.cascade is not None:
        return (
            f"cascade {target.cascade.name} has no classifier for the {target.mode} mode: smn probe --data LABELLED "
            "--cascade DIR --out DIR writes one for each mode into its file; push that"
        )
    whose = f"mask {target.mask.name}" if target.mask is not None else server.backbone.architecture
    into = "--mask FILE " if target.mask is not None else ""
    return (
        f"{whose} has no classifier: smn probe --data LABELLED {into}--out FILE writes one into a mask file; push that"
    )


async def _run(server: Server, record: Record, images: Images, target: Target) -> Embedding:
    """Decode while the embedder loads what it needs, then embed."""
    used = target.used
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
    return Embedding(done.z, target.mask, target.space, done.warnings, target.cascade, mode, done.chosen, target.head)


def _told(used: Resolved) -> dict[str, Any]:
    return {"name": used.name, "version": used.version, "digest": used.digest}


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
