"""The requests of the client, and what may be in them: addresses, keys, names and references are checked first."""

from __future__ import annotations

import io
import ipaddress
import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from service.keys import clean_key
from service.registry.base import Kind, check_alias, check_digest, parse_reference
from smn_core.errors import InvalidArgument
from smn_core.names import check_name

NPY = "application/x-npy"
MAX_VERSION = 999_999_999
USER = re.compile(r"//[^/@]*@")
Image = bytes | Path


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

    def arguments(self) -> dict[str, Any]:
        """What httpx2's `request` takes beside method and path."""
        found = {"params": self.params, "content": self.content, "json": self.json, "files": self.files}
        return {**{name: value for name, value in found.items() if value is not None}, "headers": self.headers}


def path_of(kind: Kind, name: str, *more: str) -> str:
    """`/masks/NAME/...`, every part quoted.

    Raises:
        InvalidArgument: no name by the grammar. In a URL `#`, `?` and `/` would make it another one's.
    """
    check_name(name)
    return "/".join(("", *(quote(part, safe="") for part in (kind, name, *more))))


def alias_path(kind: Kind, name: str, alias: str) -> str:
    """`/masks/NAME/aliases/ALIAS`.

    Raises:
        InvalidArgument: no name or no alias by the grammar.
    """
    check_alias(alias)
    return path_of(kind, name, "aliases", alias)


def version_params(version: int | None) -> dict[str, str] | None:
    """The query that names a version; none for the current one.

    Raises:
        InvalidArgument: a number that no version has.
    """
    if version is None:
        return None
    check_version(version)
    return {"version": str(version)}


def check_version(version: int) -> None:
    """Raise InvalidArgument unless a version may have this number."""
    if not 1 <= version <= MAX_VERSION:
        raise InvalidArgument(f"version {version}: versions count from 1 to {MAX_VERSION}")


def embed_call(
    images: Sequence[Image] | Float32[ndarray, "n 3 h w"],
    mask: str | None,
    *,
    cascade: str | None = None,
    mode: str | None = None,
    normalize: bool = False,
    dimensions: int | None = None,
    space: str | None = None,
    top: int | None = None,
    path: str = "/embed",
    accept: str = NPY,
) -> Call:
    """Images as multipart, or an array of normalised inputs as npy; the answer as npy, or as `accept` says.

    Args:
        path: `/embed`, or `/classify`, which takes `top`.

    Raises:
        InvalidArgument: mask or cascade is no reference.
    """
    for reference in (mask, cascade):
        if reference is not None:
            parse_reference(reference)
    params = {"normalize": "true"} if normalize else {}
    given = {"mask": mask, "cascade": cascade, "mode": mode, "space": space}
    params |= {name: value for name, value in given.items() if value is not None}
    numbers = {"dimensions": dimensions, "top": top}
    params |= {name: str(value) for name, value in numbers.items() if value is not None}
    headers = {"Accept": accept}
    if isinstance(images, ndarray):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(images, np.float32), allow_pickle=False)
        return Call("POST", path, params, content=buffer.getvalue(), headers={**headers, "Content-Type": NPY})
    files = [("image", (f"{i}", _bytes_of(image), "application/octet-stream")) for i, image in enumerate(images)]
    return Call("POST", path, params, files=files, headers=headers)


def push_call(name: str, mask: Image, if_match: str | None, *, if_absent: bool, kind: Kind = "masks") -> Call:
    """A mask or cascade file as the next version of a name.

    Raises:
        InvalidArgument: no name, or `if_match` is no digest.
    """
    path = path_of(kind, name)
    headers = {"Content-Type": "application/octet-stream"}
    if if_match is not None:
        check_digest(if_match)
        headers["If-Match"] = f'"{if_match}"'
    headers |= {"If-None-Match": "*"} if if_absent else {}
    return Call("PUT", path, content=_bytes_of(mask), headers=headers)


def connection(server: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    """What both of httpx2's clients are made with.

    Raises:
        InvalidArgument: the server's address or the key cannot be used.
    """
    headers = {"Authorization": f"Bearer {clean_key(key, '--key (SMN_KEY)')}"} if key and key.strip() else {}
    return {"base_url": address_of(server), "headers": headers, "timeout": timeout_s}


def address_of(server: str) -> str:
    """The server's URL, without a slash at its end.

    Raises:
        InvalidArgument: it is not an http(s) URL with a host.
    """
    try:
        url = httpx2.URL(server.strip())
        sound = url.scheme in ("http", "https") and url.host and not url.query and not url.fragment
        sound = sound and 0 < (url.port or 80) < 2**16
    except (httpx2.InvalidURL, ValueError):
        sound = False
    if not sound:
        raise InvalidArgument(f"--server {hide_user(server)!r} is not an http:// or https:// URL")
    return server.strip().rstrip("/")


def hide_user(url: str) -> str:
    """A URL without the user and password that it may have."""
    return USER.sub("//", url, count=1)


def proxy_of(server: str) -> httpx2.Proxy | None:
    """The proxy that the environment names for a server. Loopback and what NO_PROXY names need none.

    httpx2 itself makes the transports of all proxies of the environment, and fails at one that it never needs.

    Raises:
        InvalidArgument: the proxy cannot be used.
    """
    url = httpx2.URL(address_of(server))
    host = f"[{url.host}]" if ":" in url.host else url.host
    if _is_loopback(url.host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy:
        return None
    try:
        return httpx2.Proxy(proxy if "://" in proxy else f"http://{proxy}")
    except (httpx2.InvalidURL, ValueError) as error:
        raise InvalidArgument(unusable_proxy("it is not the URL of a proxy")) from error


def unusable_proxy(reason: str) -> str:
    """What is said of a proxy: not its URL, which may have a password."""
    return f"the proxy of the environment cannot be used: {reason}; unset it, or name the server in NO_PROXY"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bytes_of(image: Image) -> bytes:
    return image if isinstance(image, bytes) else image.read_bytes()
