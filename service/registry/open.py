"""A registry by its path or URL."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.registry.base import Registry
from service.registry.directory import DirectoryRegistry
from smn_core.errors import InvalidArgument, NotFound

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")


def open_registry(url_or_path: str | Path, fingerprint: str) -> Registry:
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
    """Refuse a folder in which `open_registry` would begin a new registry. A Redis has no such mark.

    Raises:
        NotFound: there is no registry, or none of this backbone.
        InvalidArgument: an unknown scheme.
    """
    folder = _folder_of(url_or_path)
    if folder is not None and not DirectoryRegistry.is_at(folder, fingerprint):
        known = ", ".join(sorted(found.name for found in folder.iterdir() if found.is_dir())) if folder.is_dir() else ""
        why = f"its backbones begin with {known}" if known else "there is none"
        raise NotFound(f"{folder} holds no registry of the backbone {fingerprint[:16]}: {why}")


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
