"""A registry by its path or URL."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.registry.directory import DirectoryRegistry
from service.registry.whole import WholeRegistry
from smn_core.errors import InvalidArgument, NotFound

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")


def open_registry(url_or_path: str | Path, fingerprint: str) -> WholeRegistry:
    """The registry of one backbone's masks and cascades at a folder, a `file:` URL or a Redis URL.

    Raises:
        InvalidArgument: an unknown scheme, or a path that cannot be a folder.
        Unavailable: a folder that cannot be made. A Redis that is away is waited for: `check` tells.
    """
    folder = _folder_of(url_or_path)
    if folder is not None:
        return DirectoryRegistry(folder, fingerprint)
    from service.registry.redis import RedisRegistry

    return RedisRegistry(str(url_or_path), fingerprint)


def require_there(url_or_path: str | Path, fingerprint: str) -> None:
    """Refuse a place in which `open_registry` would begin a new registry.

    Raises:
        NotFound: there is no registry, or none of this backbone.
        InvalidArgument: an unknown scheme.
        Unavailable: a Redis that is away.
    """
    known = backbones_in(url_or_path)
    if fingerprint[:16] not in known:
        why = f"its backbones begin with {', '.join(known)}" if known else "there is none"
        where = hide_user(str(url_or_path))
        raise NotFound(f"{where} holds no registry of the backbone {fingerprint[:16]}: {why}")


def backbones_in(url_or_path: str | Path) -> list[str]:
    """The backbones that a registry holds masks of, each by the first 16 hex digits of its fingerprint.

    Raises:
        InvalidArgument: an unknown scheme.
        Unavailable: a Redis that is away.
    """
    folder = _folder_of(url_or_path)
    if folder is None:
        from service.registry.connect import backbones_of

        return backbones_of(str(url_or_path))
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if DirectoryRegistry.is_at(folder, path.name))


def hide_user(url: str) -> str:
    """A URL without the user and password that it may have."""
    return re.sub(r"//[^/@]*@", "//", url, count=1)


def _folder_of(url_or_path: str | Path) -> Path | None:
    """The folder that a registry is in; None for a Redis."""
    text = str(url_or_path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text)
    if isinstance(url_or_path, Path) or scheme is None:
        return Path(url_or_path)
    if scheme[1] == "file":
        parts = urlsplit(text)
        if parts.netloc not in {"", "localhost"}:
            raise InvalidArgument(f"{text!r} names another machine: write file:///path")
        return Path(unquote(parts.path))
    if scheme[1] in REDIS_SCHEMES:
        return None
    raise InvalidArgument(
        f"a registry is a folder, file:///path or one of {', '.join(f'{s}://' for s in REDIS_SCHEMES)}, not {scheme[0]}"
    )
