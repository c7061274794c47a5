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
from numpy import ndarray

from service.keys import clean_key
from service.registry.base import Kind, check_alias, check_digest, parse_reference
from smn_core.errors import InvalidArgument
from smn_core.given import Content
from smn_core.names import check_name

NPY = "application/x-npy"
MAX_VERSION = 999_999_999
USER = re.compile(r"//[^/@]*@")


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


@dataclass(frozen=True)
class Asked:
    """What is asked of the images of a request, whichever they are: the route, its query, how the answer comes."""

    path: str
    params: Mapping[str, str]
    accept: str


def ask_embeddings(
    mask: str | None,
    *,
    cascade: str | None = None,
    mode: str | None = None,
    normalize: bool = False,
    dimensions: int | None = None,
    space: str | None = None,
) -> Asked:
    """Embeddings through a mask, a cascade or the untouched backbone, as npy.

    Raises:
        InvalidArgument: mask or cascade is no reference.
    """
    params = _through(mask, cascade, mode, space)
    params |= {"normalize": "true"} if normalize else {}
    params |= {"dimensions": str(dimensions)} if dimensions is not None else {}
    return Asked("/embed", params, NPY)


def ask_labels(
    mask: str | None,
    *,
    cascade: str | None = None,
    mode: str | None = None,
    top: int | None = None,
    space: str | None = None,
) -> Asked:
    """The labels of a mask's or a cascade's classifier.

    Raises:
        InvalidArgument: mask or cascade is no reference.
    """
    params = _through(mask, cascade, mode, space)
    params |= {"top": str(top)} if top is not None else {}
    return Asked("/classify", params, "application/json")


def _through(mask: str | None, cascade: str | None, mode: str | None, space: str | None) -> dict[str, str]:
    for reference in (mask, cascade):
        if reference is not None:
            parse_reference(reference)
    given = {"mask": mask, "cascade": cascade, "mode": mode, "space": space}
    return {name: value for name, value in given.items() if value is not None}


def images_call(asked: Asked, contents: Sequence[Content]) -> Call:
    """Image files as multipart, or normalised inputs of one shape as npy."""
    headers = {"Accept": asked.accept}
    if isinstance(contents[0], ndarray):
        buffer = io.BytesIO()
        np.save(buffer, np.stack(contents), allow_pickle=False)
        return Call(
            "POST", asked.path, asked.params, content=buffer.getvalue(), headers={**headers, "Content-Type": NPY}
        )
    files = [("image", (f"{i}", data, "application/octet-stream")) for i, data in enumerate(contents)]
    return Call("POST", asked.path, asked.params, files=files, headers=headers)


def push_call(
    name: str, mask: bytes | str | Path, if_match: str | None, *, if_absent: bool, kind: Kind = "masks"
) -> Call:
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


def _bytes_of(file: bytes | str | Path) -> bytes:
    return file if isinstance(file, bytes) else Path(file).read_bytes()
