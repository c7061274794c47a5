"""The asynchronous client: every call of `Client`, awaited; `embed_each` is an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx2

from service import talks
from service.answers import embeddings_of, labels_of
from service.calls import Asked, Call, ask_embeddings, ask_labels, connection, proxy_of, unusable_proxy
from service.cutting import Limits, Read, ask, cut
from service.sending import ATTEMPTS, IN_FLIGHT, NO_SOCKS, as_method, away, may_resend, wait_s
from service.talks import Talk
from smn_core.answers import Embeddings, Gathered, Labels, Part, Row, rows_of
from smn_core.collection import Collection
from smn_core.errors import InvalidArgument
from smn_core.given import Images, each_item
from smn_core.verbs.counting import counting

P = ParamSpec("P")
T = TypeVar("T")


def _async(talk: Callable[P, Talk[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The talk as a call of `AsyncClient`."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._carry_out(talk(*args, **kwargs))

    as_method(method, talk)
    return method


class AsyncClient:
    """As `Client`, which says what each call does. Images are read and cut in a thread, not on the event loop."""

    def __init__(
        self, server: str, key: str | None = None, timeout_s: float = 60.0, *, in_flight: int = IN_FLIGHT
    ) -> None:
        settings = connection(server, key, timeout_s)
        self._in_flight = max(1, in_flight)
        self._limits: Limits | None = None
        try:
            self._reused = False
            self._http = httpx2.AsyncClient(**settings, transport=httpx2.AsyncHTTPTransport(proxy=proxy_of(server)))
        except ImportError as error:
            raise InvalidArgument(unusable_proxy(NO_SOCKS)) from error

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def embed(
        self,
        images: Images,
        mask: str | None = None,
        *,
        cascade: str | None = None,
        mode: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        space: str | None = None,
        strict: bool = True,
        progress: bool = False,
    ) -> Embeddings:
        """As `Client.embed`."""
        asked = ask_embeddings(
            mask, cascade=cascade, mode=mode, normalize=normalize, dimensions=dimensions, space=space
        )
        return (await self._gather(images, asked, embeddings_of, strict=strict, progress=progress)).embeddings()

    def embed_each(
        self,
        images: Images,
        mask: str | None = None,
        *,
        cascade: str | None = None,
        mode: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        space: str | None = None,
        strict: bool = True,
        progress: bool = False,
    ) -> AsyncGenerator[Row, None]:
        """As `Client.embed_each`, for `async for`."""
        asked = ask_embeddings(
            mask, cascade=cascade, mode=mode, normalize=normalize, dimensions=dimensions, space=space
        )
        return self._each(images, asked, strict=strict, progress=progress)

    async def classify(
        self,
        images: Images,
        mask: str | None = None,
        *,
        cascade: str | None = None,
        mode: str | None = None,
        top: int | None = None,
        space: str | None = None,
        strict: bool = True,
        progress: bool = False,
    ) -> Labels:
        """As `Client.classify`."""
        asked = ask_labels(mask, cascade=cascade, mode=mode, top=top, space=space)
        return (await self._gather(images, asked, labels_of, strict=strict, progress=progress)).labels()

    push = _async(talks.push)
    push_cascade = _async(talks.push_cascade)
    pull = _async(talks.pull)
    pull_parent = _async(talks.pull_parent)
    pull_cascade = _async(talks.pull_cascade)
    cascade = _async(talks.cascade)
    mask = _async(talks.mask)
    names = _async(talks.names)
    masks = _async(talks.masks)
    rollback = _async(talks.rollback)
    delete = _async(talks.delete)
    set_alias = _async(talks.set_alias)
    delete_alias = _async(talks.delete_alias)
    info = _async(talks.info)
    space = _async(talks.space)

    async def _gather(
        self, images: Images, asked: Asked, read: Read[T], *, strict: bool, progress: bool
    ) -> Gathered[T]:
        found: Gathered[T] = Gathered()
        async with aclosing(self._parts(images, asked, read, strict=strict)) as parts:
            with counting(images, progress) as count:
                async for part in parts:
                    found.add(part)
                    count(part.n_images)
        return found

    async def _each(self, images: Images, asked: Asked, *, strict: bool, progress: bool) -> AsyncGenerator[Row, None]:
        seen = Collection()
        async with aclosing(self._parts(images, asked, embeddings_of, strict=strict)) as parts:
            with counting(images, progress) as count:
                async for part in parts:
                    if part.space:
                        seen.admit(part.space)
                    for row in rows_of(part):
                        yield row
                    count(part.n_images)

    async def _parts(
        self, images: Images, asked: Asked, read: Read[T], *, strict: bool
    ) -> AsyncGenerator[Part[T], None]:
        self._limits = self._limits or Limits.of(await self._carry_out(talks.limits()))
        requests = cut(each_item(images), self._limits)
        ahead: deque[asyncio.Task[list[Part[T]]]] = deque()
        try:
            while True:
                while len(ahead) < self._in_flight:
                    some = await asyncio.to_thread(next, requests, None)
                    if some is None:
                        break
                    ahead.append(asyncio.create_task(self._carry_out(ask(some, asked, read, strict=strict))))
                if not ahead:
                    return
                for part in await ahead.popleft():
                    yield part
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _carry_out(self, talk: Talk[T]) -> T:
        """As `Client._carry_out`."""
        try:
            call = next(talk)
            while True:
                call = talk.send(await self._send(call))
        except StopIteration as done:
            answer: T = done.value
            return answer

    async def _send(self, call: Call) -> httpx2.Response:
        for attempt in range(ATTEMPTS):
            try:
                response = await self._http.request(call.method, call.path, **call.arguments())
            except httpx2.RequestError as error:
                if attempt + 1 == ATTEMPTS or not may_resend(call, error, reused=self._reused):
                    raise away(self._http.base_url, error) from error
                self._reused = False
                continue
            self._reused = True
            pause_s = wait_s(response, attempt)
            if pause_s is None:
                return response
            await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns")
