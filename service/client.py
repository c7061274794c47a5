"""A client of the service, sync and async: typed answers, retries that honour Retry-After.

with Client("http://127.0.0.1:8000", key="...") as smn:
    smn.push("flowers", Path("flowers.smn"))
    z = smn.embed([Path("rose.jpg")], mask="flowers").embeddings
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx2
import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.errors import InvalidArgument, SMNError
from smn_core.files import write_bytes

NPY = "application/x-npy"
Kind = Literal["masks", "cascades"]
RETRIED = (429, 503)
ATTEMPTS = 5
LONGEST_WAIT_S = 10.0
Image = bytes | Path


class ServerError(SMNError):
    """The server refused the request; carries its message, code and status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class ServerAway(SMNError):
    """No server answered: the address is wrong, or nothing listens there."""

    code = "server_away"


@dataclass(frozen=True)
class Embeddings:
    """Embeddings in the order of the images. `digest` is that of the mask or cascade, or "root" if there was none."""

    embeddings: Float32[ndarray, "n d"]
    digest: str
    server_timing: str


@dataclass(frozen=True)
class Call:
    """One request, as both clients send it."""

    method: str
    path: str
    params: Mapping[str, str] | None = None
    content: bytes | None = None
    json: Any = None
    files: Any = None
    headers: Mapping[str, str] | None = None


def embed_call(
    images: Sequence[Image] | Float32[ndarray, "n 3 h w"],
    mask: str | None,
    *,
    cascade: str | None = None,
    mode: str | None = None,
    normalize: bool,
    dimensions: int | None,
) -> Call:
    """Images as multipart, or an array of normalised inputs as npy; the answer as npy."""
    params = {"normalize": "true"} if normalize else {}
    given = {"mask": mask, "cascade": cascade, "mode": mode}
    params |= {name: value for name, value in given.items() if value is not None}
    params |= {"dimensions": str(dimensions)} if dimensions is not None else {}
    headers = {"Accept": NPY}
    if isinstance(images, ndarray):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(images, np.float32), allow_pickle=False)
        return Call("POST", "/embed", params, content=buffer.getvalue(), headers={**headers, "Content-Type": NPY})
    files = [("image", (f"{i}", _bytes_of(image), "application/octet-stream")) for i, image in enumerate(images)]
    return Call("POST", "/embed", params, files=files, headers=headers)


def push_call(name: str, mask: Image, if_match: str | None, *, if_absent: bool, kind: Kind = "masks") -> Call:
    """A mask or cascade file as the next version of a name."""
    headers = {"Content-Type": "application/octet-stream"}
    headers |= {"If-Match": f'"{if_match}"'} if if_match is not None else {}
    headers |= {"If-None-Match": "*"} if if_absent else {}
    return Call("PUT", f"/{kind}/{name}", content=_bytes_of(mask), headers=headers)


def _bytes_of(image: Image) -> bytes:
    return image if isinstance(image, bytes) else image.read_bytes()


def _embeddings_of(response: httpx2.Response) -> Embeddings:
    z = np.load(io.BytesIO(response.content), allow_pickle=False)
    return Embeddings(z, response.headers["x-smn-digest"], response.headers.get("server-timing", ""))


def _check(response: httpx2.Response) -> httpx2.Response:
    if response.is_success or response.status_code == 304:
        return response
    try:
        detail = response.json()["error"]
        raise ServerError(response.status_code, str(detail["code"]), str(detail["message"]))
    except (ValueError, KeyError, TypeError) as error:
        text = response.text[:200]
        raise ServerError(response.status_code, "unknown", f"status {response.status_code}: {text}") from error


def _wait_s(response: httpx2.Response, attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None where no further attempt should be made."""
    if response.status_code not in RETRIED or attempt + 1 >= ATTEMPTS:
        return None
    after = response.headers.get("retry-after", "")
    return min(float(after) if after.isdigit() else 0.1 * 2**attempt, LONGEST_WAIT_S)


def _settings(server: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    if not server.startswith(("http://", "https://")):
        raise InvalidArgument(f"--server {server!r} is not an http:// or https:// URL")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"base_url": server.rstrip("/"), "headers": headers, "timeout": timeout_s}


def _arguments(call: Call) -> dict[str, Any]:
    found = {"params": call.params, "content": call.content, "json": call.json, "files": call.files}
    return {**{name: value for name, value in found.items() if value is not None}, "headers": call.headers}


class Client:
    """The synchronous client.

    Raises, all calls:
        ServerError: the server refused, after retries where it asked for them.
        ServerAway: there was no answer.
    """

    def __init__(self, server: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        self._http = httpx2.Client(**_settings(server, key, timeout_s))

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
    ) -> Embeddings:
        """Embeddings of image files, or of normalised inputs, through a mask, a cascade or the untouched backbone."""
        call = embed_call(images, mask, cascade=cascade, mode=mode, normalize=normalize, dimensions=dimensions)
        return _embeddings_of(self._send(call))

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
        return dict(self._send(push_call(name, mask, if_match, if_absent=if_absent, kind=kind)).json())

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

        found = open_folder(folder)
        data = (folder / FILE_NAME).read_bytes()
        names = [f"{name}.root", *(f"{name}.expert-{i}" for i in range(1, len(found.files)))]
        for mask_name, file in zip(names, found.files, strict=True):
            self.push(mask_name, file)
        return self.push(name, data, if_match=if_match, if_absent=if_absent, kind="cascades")

    def pull(self, name: str, version: int | None = None, kind: Kind = "masks") -> bytes:
        """A mask or cascade file."""
        params = {"version": str(version)} if version is not None else None
        return self._send(Call("GET", f"/{kind}/{name}/file", params)).content

    def pull_cascade(self, name: str, folder: Path) -> None:
        """Download the current version of a cascade and its masks to a folder, as `smn cascade` would write them.

        Raises:
            InvalidArgument: a mask that the key may not see, or a folder that cannot be written.
        """
        from smn_core.cascade.file import FILE_NAME

        places = self.cascade(name)["masks"]
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
        return dict(self._send(Call("GET", f"/cascades/{name}")).json())

    def mask(self, name: str) -> dict[str, Any]:
        """Versions, metadata and density of a mask."""
        return dict(self._send(Call("GET", f"/masks/{name}")).json())

    def names(self, kind: Kind) -> list[dict[str, Any]]:
        """All masks or cascades, in order of names."""
        found: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None:
            page = self._send(Call("GET", f"/{kind}", {"limit": "1000", "after": after})).json()
            found += page["data"]
            after = page["next"]
        return found

    def masks(self) -> list[dict[str, Any]]:
        """All masks, in order of names."""
        return self.names("masks")

    def rollback(self, name: str, version: int, kind: Kind = "masks") -> dict[str, Any]:
        """Make an earlier (or later) version the current one."""
        return dict(self._send(Call("PUT", f"/{kind}/{name}/current", json={"version": version})).json())

    def delete(self, name: str, version: int | None = None, kind: Kind = "masks") -> None:
        """Delete one version, or the name."""
        params = {"version": str(version)} if version is not None else None
        self._send(Call("DELETE", f"/{kind}/{name}", params))

    def info(self) -> dict[str, Any]:
        """What the server is."""
        return dict(self._send(Call("GET", "/info")).json())

    def _send(self, call: Call) -> httpx2.Response:
        for attempt in range(ATTEMPTS):
            try:
                response = self._http.request(call.method, call.path, **_arguments(call))
            except httpx2.TransportError as error:
                raise ServerAway(f"no answer from {self._http.base_url}: {error or type(error).__name__}") from error
            wait_s = _wait_s(response, attempt)
            if wait_s is None:
                return _check(response)
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns")


class AsyncClient:
    """The asynchronous client: embedding and uploading, as `Client` has them."""

    def __init__(self, server: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        self._http = httpx2.AsyncClient(**_settings(server, key, timeout_s))

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
    ) -> Embeddings:
        """As `Client.embed`."""
        call = embed_call(images, mask, cascade=cascade, mode=mode, normalize=normalize, dimensions=dimensions)
        return _embeddings_of(await self._send(call))

    async def push(
        self, name: str, mask: Image, *, if_match: str | None = None, if_absent: bool = False
    ) -> dict[str, Any]:
        """As `Client.push`."""
        return dict((await self._send(push_call(name, mask, if_match, if_absent=if_absent))).json())

    async def _send(self, call: Call) -> httpx2.Response:
        for attempt in range(ATTEMPTS):
            try:
                response = await self._http.request(call.method, call.path, **_arguments(call))
            except httpx2.TransportError as error:
                raise ServerAway(f"no answer from {self._http.base_url}: {error or type(error).__name__}") from error
            wait_s = _wait_s(response, attempt)
            if wait_s is None:
                return _check(response)
            await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns")
