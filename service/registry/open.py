"""A registry by its path or URL."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.registry.base import Registry
from service.registry.directory import DirectoryRegistry
from smn_core.errors import InvalidArgument

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")


def open_registry(url_or_path: str | Path, fingerprint: str) -> Registry:
    """The registry of one backbone's masks and cascades at a folder, a `file:` URL or a Redis URL.

    Raises:
        InvalidArgument: an unknown scheme, or a path that cannot be a folder.
        Unavailable: a folder that cannot be made. A Redis that is away is waited for: `check` tells.
    """
    text = str(url_or_path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text)
    if isinstance(url_or_path, Path) or scheme is None:
        return DirectoryRegistry(Path(url_or_path), fingerprint)
    if scheme[1] == "file":
        parts = urlsplit(text)
        if parts.netloc not in {"", "localhost"}:
            raise InvalidArgument(f"{text!r} names another machine: write file:///path")
        return DirectoryRegistry(Path(unquote(parts.path)), fingerprint)
    if scheme[1] in REDIS_SCHEMES:
        from service.registry.redis import RedisRegistry

        return RedisRegistry(text, fingerprint)
    raise InvalidArgument(
        f"a registry is a folder, file:///path or one of {', '.join(f'{s}://' for s in REDIS_SCHEMES)}, not {scheme[0]}"
    )
