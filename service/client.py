"""A client of the service, sync and async: typed answers, retries that honour Retry-After, images of any number.

with Client("http://127.0.0.1:8000", key="...") as smn:
    smn.push("flowers", Path("flowers.smn"))
    z = smn.embed("photos/", mask="flowers").embeddings

What a call says and what it makes of an answer is in `talks.py`; here is how it is sent, and sent again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import httpx2

from service import talks
from service.answers import ServerAway, ServerError, embeddings_of, labels_of
from service.asyncclient import AsyncClient
from service.calls import Asked, Call, ask_embeddings, ask_labels, connection, proxy_of, unusable_proxy
from service.cutting import Limits, Read, ask, cut
from service.registry.base import Kind
from service.sending import ATTEMPTS, IN_FLIGHT, NO_SOCKS, as_method, away, may_resend, wait_s
from service.talks import Talk
from smn_core.ahead import in_order
from smn_core.answers import Embeddings, Labels, Part, Row
from smn_core.errors import InvalidArgument
from smn_core.given import Images, each_item
from smn_core.verbs.gathering import gather, gather_rows

__all__ = ["AsyncClient", "Client", "Embeddings", "Kind", "Labels", "Row", "ServerAway", "ServerError"]

P = ParamSpec("P")
T = TypeVar("T")


def _sync(talk: Callable[P, Talk[T]]) -> Callable[Concatenate[Client, P], T]:
    """The talk as a call of `Client`."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._carry_out(talk(*args, **kwargs))

    as_method(method, talk)
    return method


class Client:
    """The synchronous client.

    Args:
        server: its URL.
        key: one of its keys.
        timeout_s: of one request.
        in_flight: requests that are on their way at once while many images are embedded.

    Raises, all calls:
        ServerError: the server refused, after retries where it asked for them.
        ServerAway: there was no answer.
    """

    def __init__(
        self, server: str, key: str | None = None, timeout_s: float = 60.0, *, in_flight: int = IN_FLIGHT
    ) -> None:
        settings = connection(server, key, timeout_s)
        self._in_flight = max(1, in_flight)
        self._limits: Limits | None = None
        try:
            self._reused = False  # whether a connection may be kept from an earlier call
            self._http = httpx2.Client(**settings, transport=httpx2.HTTPTransport(proxy=proxy_of(server)))
        except ImportError as error:
            raise InvalidArgument(unusable_proxy(NO_SOCKS)) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def embed(
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
        """Embeddings of images through a mask, a cascade or the untouched backbone.

        Args:
            images: paths, folders, bytes, PIL images, arrays (`smn_core/given.py`), or an iterable of them, of any
                length. They are sent in requests that the server takes, a few at a time; rows keep their order.
            space: the id that the vectors must be in.
            strict: an image that cannot be read is an error. Otherwise it has no row and is named in `skipped`.
            progress: draw a bar on stderr.

        Raises:
            OtherSpace: the server answers in another space than `space`, or in two spaces in turn.
            InvalidImage, ServerError: an image that cannot be read here, or there.
            InvalidArgument: no images, or something that is none.
        """
        asked = ask_embeddings(
            mask, cascade=cascade, mode=mode, normalize=normalize, dimensions=dimensions, space=space
        )
        parts = self._parts(images, asked, embeddings_of, strict=strict)
        return gather(parts, images, progress=progress).embeddings()

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
    ) -> Generator[Row, None, None]:
        """As `embed`, but yield a row an image while others are on their way: `images` may be endless.

        Rows come as late as `in_flight` requests are long. Without `strict` an image that cannot be read has a row
        too, with an error instead of a vector.
        """
        asked = ask_embeddings(
            mask, cascade=cascade, mode=mode, normalize=normalize, dimensions=dimensions, space=space
        )
        return gather_rows(self._parts(images, asked, embeddings_of, strict=strict), images, progress=progress)

    def classify(
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
        """What a mask's classifier says of images: the `top` most probable classes of each, or all. Else as `embed`."""
        asked = ask_labels(mask, cascade=cascade, mode=mode, top=top, space=space)
        return gather(self._parts(images, asked, labels_of, strict=strict), images, progress=progress).labels()

    push = _sync(talks.push)
    push_cascade = _sync(talks.push_cascade)
    pull = _sync(talks.pull)
    pull_parent = _sync(talks.pull_parent)
    pull_cascade = _sync(talks.pull_cascade)
    cascade = _sync(talks.cascade)
    mask = _sync(talks.mask)
    names = _sync(talks.names)
    masks = _sync(talks.masks)
    rollback = _sync(talks.rollback)
    delete = _sync(talks.delete)
    set_alias = _sync(talks.set_alias)
    delete_alias = _sync(talks.delete_alias)
    info = _sync(talks.info)
    space = _sync(talks.space)

    def _parts(self, images: Images, asked: Asked, read: Read[T], *, strict: bool) -> Generator[Part[T], None, None]:
        """The answers about the images, in order; at most so many requests as are in flight are held at once."""
        self._limits = self._limits or Limits.of(self._carry_out(talks.limits()))
        jobs = (
            partial(self._carry_out, ask(some, asked, read, strict=strict))
            for some in cut(each_item(images), self._limits)
        )
        with closing(in_order(jobs, self._in_flight, self._in_flight - 1, "smn-client")) as answers:
            for parts in answers:
                yield from parts

    def _carry_out(self, talk: Talk[T]) -> T:
        """Send the requests of a talk, and give it the responses, until it returns."""
        try:
            call = next(talk)
            while True:
                call = talk.send(self._send(call))
        except StopIteration as done:
            answer: T = done.value
            return answer

    def _send(self, call: Call) -> httpx2.Response:
        for attempt in range(ATTEMPTS):
            try:
                response = self._http.request(call.method, call.path, **call.arguments())
            except httpx2.RequestError as error:
                if attempt + 1 == ATTEMPTS or not may_resend(call, error, reused=self._reused):
                    raise away(self._http.base_url, error) from error
                self._reused = False
                continue
            self._reused = True
            pause_s = wait_s(response, attempt)
            if pause_s is None:
                return response
            time.sleep(pause_s)
        raise AssertionError("the last attempt returns")
