"""A client of the service, sync and async: typed answers, retries that honour Retry-After.

with Client("http://127.0.0.1:8000", key="...") as smn:
    smn.push("flowers", Path("flowers.smn"))
    z = smn.embed([Path("rose.jpg")], mask="flowers").embeddings
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
from jaxtyping import Float32
from numpy import ndarray

from service.answers import (
    ALIASED,
    CASCADE,
    CLASSIFIED,
    CURRENT,
    ENTRY,
    MASK,
    PAGE,
    PLACE,
    WRITTEN,
    Embeddings,
    ServerError,
    check,
    embeddings_of,
    one_line,
    require_shape,
    table_of,
)
from service.calls import (
    Call,
    Image,
    alias_path,
    check_version,
    connection,
    embed_call,
    hide_user,
    path_of,
    proxy_of,
    push_call,
    unusable_proxy,
    version_params,
)
from service.registry.base import Kind
from smn_core.errors import InvalidArgument, SMNError
from smn_core.files import write_bytes

__all__ = ["AsyncClient", "Client", "Embeddings", "Image", "Kind", "ServerAway", "ServerError"]

RETRIED = (429, 503)
ATTEMPTS = 5
LONGEST_WAIT_S = 10.0


class ServerAway(SMNError):
    """No server answered: the address is wrong, or nothing listens there."""

    code = "server_away"


def _wait_s(response: httpx2.Response, attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None where no further attempt should be made."""
    if response.status_code not in RETRIED or attempt + 1 >= ATTEMPTS:
        return None
    after = response.headers.get("retry-after", "")
    told = after.isascii() and after.isdigit()
    return min(float(after[:9]) if told else 0.1 * 2**attempt, LONGEST_WAIT_S)


def _may_resend(call: Call, error: httpx2.RequestError, *, reused: bool) -> bool:
    """Whether a call should be sent once more: its connection was an old one that the server had just closed.

    Not an upload with a guard: had the first one been made, the second would be refused.
    """
    lost = isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError)
    guarded = not {"If-Match", "If-None-Match"}.isdisjoint(call.headers or ())
    return reused and lost and not guarded


def _away(url: httpx2.URL, error: Exception) -> ServerAway:
    return ServerAway(f"no answer from {hide_user(str(url))}: {one_line(str(error)) or type(error).__name__}")


class Client:
    """The synchronous client.

    Raises, all calls:
        ServerError: the server refused, after retries where it asked for them.
        ServerAway: there was no answer.
    """

    def __init__(self, server: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        settings = connection(server, key, timeout_s)
        try:
            self._reused = False  # whether a connection may be kept from an earlier call
            self._http = httpx2.Client(**settings, transport=httpx2.HTTPTransport(proxy=proxy_of(server)))
        except ImportError as error:
            raise InvalidArgument(unusable_proxy("a SOCKS proxy needs the package socksio")) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def embed(
        self,
        images: Sequence[Image] | Float32[ndarray, "n 3 h w"],
        mask: str | None = None,
        *,
        cascade: str | None = None,
        mode: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        space: str | None = None,
    ) -> Embeddings:
        """Embeddings of image files, or of normalised inputs, through a mask, a cascade or the untouched backbone.

        `space` is one that they must be in: the server refuses another one (412, `other_space`).
        """
        shape: dict[str, Any] = {"normalize": normalize, "dimensions": dimensions, "space": space}
        call = embed_call(images, mask, cascade=cascade, mode=mode, **shape)
        return embeddings_of(self._send(call))

    def classify(
        self,
        images: Sequence[Image] | Float32[ndarray, "n 3 h w"],
        mask: str | None = None,
        *,
        cascade: str | None = None,
        mode: str | None = None,
        top: int | None = None,
        space: str | None = None,
    ) -> dict[str, Any]:
        """Labels of images: the server's answer; `data` has a table an image, the `top` most probable classes first."""
        shape: dict[str, Any] = {"top": top, "space": space, "path": "/classify", "accept": "application/json"}
        call = embed_call(images, mask, cascade=cascade, mode=mode, **shape)
        return table_of(self._send(call), CLASSIFIED)

    def push(
        self,
        name: str,
        mask: Image,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        kind: Kind = "masks",
    ) -> dict[str, Any]:
        """Upload a mask or cascade file; the written version."""
        return table_of(self._send(push_call(name, mask, if_match, if_absent=if_absent, kind=kind)), WRITTEN)

    def push_cascade(
        self,
        name: str,
        folder: Path,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> dict[str, Any]:
        """Upload what `smn cascade` wrote: its masks as `NAME.root`, `NAME.expert-1` ..., then the cascade.

        Readers see all of it or nothing: the cascade is published last, and only where all its masks are there.

        Raises:
            InvalidCascade: the folder has no whole cascade.
        """
        from smn_core.cascade.file import FILE_NAME, open_folder

        path_of("cascades", name)  # an error before anything is uploaded
        found = open_folder(folder)
        data = (folder / FILE_NAME).read_bytes()
        names = [f"{name}.root", *(f"{name}.expert-{i}" for i in range(1, len(found.files)))]
        for mask_name, file in zip(names, found.files, strict=True):
            self.push(mask_name, file)
        return self.push(name, data, if_match=if_match, if_absent=if_absent, kind="cascades")

    def pull(self, name: str, version: int | None = None, kind: Kind = "masks") -> bytes:
        """A mask or cascade file."""
        return self._send(Call("GET", path_of(kind, name, "file"), version_params(version))).content

    def pull_cascade(self, name: str, folder: Path, *, overwrite: bool = False) -> None:
        """Download the current version of a cascade and its masks to a folder, as `smn cascade` would write them.

        Raises:
            InvalidArgument: a mask that the key may not see; a folder that exists already, unless `overwrite`, or that
                cannot be written.
        """
        from smn_core.cascade.file import FILE_NAME

        if not overwrite and folder.exists():
            raise InvalidArgument(f"{folder} exists already")
        places = self._cascade(name)[1]
        hidden = [place["digest"] for place in places if place["name"] is None]
        if hidden:
            raise InvalidArgument(f"cascade {name}: no mask that this key may see is {', '.join(hidden)}")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InvalidArgument(f"cannot make {folder}: {error.strerror}") from error
        for number, place in enumerate(places):
            file = folder / (f"expert-{number}.smn" if number else "root.smn")
            write_bytes(file, self.pull(place["name"], place["version"]))
        write_bytes(folder / FILE_NAME, self.pull(name, kind="cascades"))

    def cascade(self, name: str) -> dict[str, Any]:
        """Versions, masks, fusion and modes of a cascade."""
        return self._cascade(name)[0]

    def _cascade(self, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What the server says of a cascade, and the places of its masks in that."""
        response = self._send(Call("GET", path_of("cascades", name)))
        found = table_of(response, CASCADE)
        return found, [require_shape(response, place, PLACE) for place in found["masks"]]

    def mask(self, name: str) -> dict[str, Any]:
        """Versions, metadata and density of a mask."""
        return table_of(self._send(Call("GET", path_of("masks", name))), MASK)

    def names(self, kind: Kind) -> list[dict[str, Any]]:
        """All masks or cascades, in order of names."""
        found: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None:
            response = self._send(Call("GET", f"/{kind}", {"limit": "1000", "after": after}))
            page = table_of(response, PAGE)
            for entry in page["data"]:
                require_shape(response, require_shape(response, entry, ENTRY)["current"], CURRENT)
            found += page["data"]
            after = page["next"] if page["data"] else None
        return found

    def masks(self) -> list[dict[str, Any]]:
        """All masks, in order of names."""
        return self.names("masks")

    def rollback(self, name: str, version: int, kind: Kind = "masks") -> dict[str, Any]:
        """Make an earlier (or later) version the current one."""
        check_version(version)
        return table_of(self._send(Call("PUT", path_of(kind, name, "current"), json={"version": version})), WRITTEN)

    def delete(self, name: str, version: int | None = None, kind: Kind = "masks") -> None:
        """Delete one version, or the name with all of them, without a question."""
        self._send(Call("DELETE", path_of(kind, name), version_params(version)))

    def set_alias(self, name: str, alias: str, version: int, kind: Kind = "masks") -> dict[str, Any]:
        """Let `name@alias` mean a version from now on."""
        check_version(version)
        return table_of(self._send(Call("PUT", alias_path(kind, name, alias), json={"version": version})), ALIASED)

    def delete_alias(self, name: str, alias: str, kind: Kind = "masks") -> None:
        """Forget an alias; the version that it meant stays."""
        self._send(Call("DELETE", alias_path(kind, name, alias)))

    def info(self) -> dict[str, Any]:
        """What the server is."""
        return table_of(self._send(Call("GET", "/info")), {})

    def _send(self, call: Call) -> httpx2.Response:
        for attempt in range(ATTEMPTS):
            try:
                response = self._http.request(call.method, call.path, **call.arguments())
            except httpx2.RequestError as error:
                if attempt + 1 == ATTEMPTS or not _may_resend(call, error, reused=self._reused):
                    raise _away(self._http.base_url, error) from error
                self._reused = False
                continue
            self._reused = True
            wait_s = _wait_s(response, attempt)
            if wait_s is None:
                return check(response)
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns")


class AsyncClient:
    """The asynchronous client: embedding and uploading, as `Client` has them."""

    def __init__(self, server: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        settings = connection(server, key, timeout_s)
        try:
            self._reused = False
            self._http = httpx2.AsyncClient(**settings, transport=httpx2.AsyncHTTPTransport(proxy=proxy_of(server)))
        except ImportError as error:
            raise InvalidArgument(unusable_proxy("a SOCKS proxy needs the package socksio")) from error

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def embed(
        self,
        images: Sequence[Image] | Float32[ndarray, "n 3 h w"],
        mask: str | None = None,
        *,
        cascade: str | None = None,
        mode: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        space: str | None = None,
    ) -> Embeddings:
        """As `Client.embed`."""
        shape: dict[str, Any] = {"normalize": normalize, "dimensions": dimensions, "space": space}
        call = embed_call(images, mask, cascade=cascade, mode=mode, **shape)
        return embeddings_of(await self._send(call))

    async def push(
        self, name: str, mask: Image, *, if_match: str | None = None, if_absent: bool = False
    ) -> dict[str, Any]:
        """As `Client.push`."""
        return table_of(await self._send(push_call(name, mask, if_match, if_absent=if_absent)), WRITTEN)

    async def _send(self, call: Call) -> httpx2.Response:
        for attempt in range(ATTEMPTS):
            try:
                response = await self._http.request(call.method, call.path, **call.arguments())
            except httpx2.RequestError as error:
                if attempt + 1 == ATTEMPTS or not _may_resend(call, error, reused=self._reused):
                    raise _away(self._http.base_url, error) from error
                self._reused = False
                continue
            self._reused = True
            wait_s = _wait_s(response, attempt)
            if wait_s is None:
                return check(response)
            await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns")
