"""Where a collection is: what the user wrote, what of it may be shown, and which library it needs."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from smn_core.errors import InvalidArgument
from smn_core.files import OTHER, is_other

FILES = {".lance": ("lancedb", "search"), ".parquet": ("pyarrow", "search"), ".faiss": ("faiss", "faiss")}
"""The suffixes of collections on disk, the library that each needs, and the extra that brings it."""
SERVERS = {
    "qdrant": ("qdrant_client", "qdrant"),
    "qdrant+https": ("qdrant_client", "qdrant"),
    "postgresql": ("pgvector", "postgresql"),
    "postgres": ("pgvector", "postgresql"),
}
"""The schemes of collections on a server, the same."""
SAID = "X.lance, X.parquet, X.faiss, qdrant://HOST:PORT/NAME or postgresql://HOST/DATABASE/NAME"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")


@dataclass(frozen=True)
class Place:
    """One collection's place. `str(place)` has no user, password or option in it.

    Args:
        path: of a collection on disk.
        url: of one on a server, as the user wrote it; name: the collection's.
    """

    path: Path | None = None
    url: SplitResult | None = None
    name: str = ""

    @property
    def form(self) -> str:
        """A suffix or a scheme."""
        return self.path.suffix if self.path is not None else self.url.scheme if self.url is not None else ""

    def __str__(self) -> str:
        if self.url is None:
            return str(self.path)
        return f"{self.url.scheme}://{self.url.netloc.rpartition('@')[2]}{self.url.path}"

    def check(self) -> None:
        """Raise InvalidArgument where no collection can be kept: a library or folder is missing, or a pipe is there."""
        library, extra = FILES[self.form] if self.path is not None else SERVERS[self.form]
        if importlib.util.find_spec(library) is None:
            raise InvalidArgument(
                f"{self.form} needs {library}, of the extra {extra}: uv pip install -e '.[{extra}]' in a clone"
            )
        if self.path is not None and not self.path.parent.is_dir():
            raise InvalidArgument(f"cannot write {self.path}: No such folder as {self.path.parent}")
        if self.path is not None and is_other(self.path):
            raise InvalidArgument(f"{self.path} is no collection: {OTHER}")


def place_of(where: str | Path) -> Place:
    """Read what a user wrote.

    Raises:
        InvalidArgument: no collection can be there; a password is not repeated.
    """
    text = str(where)
    scheme, sign, _ = text.partition("://")
    if not sign or isinstance(where, Path):
        path = Path(where)
        if path.suffix not in FILES:
            raise InvalidArgument(f"{text}: a collection is {SAID}")
        return Place(path)
    if scheme not in SERVERS:
        raise InvalidArgument(f"{scheme}://: a collection is {SAID}")
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise InvalidArgument(f"{scheme}://: that is no address; a collection is {SAID}") from None
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    if len(parts) != (1 if scheme.startswith("qdrant") else 2) or not NAME.fullmatch(parts[-1]):
        raise InvalidArgument(
            f"{Place(url=url)}: a collection is {SAID}; NAME is a letter, then letters, digits, _ or -, all small"
        )
    if scheme.startswith("qdrant") and (url.username is not None or url.query or not url.hostname):
        raise InvalidArgument(f"{Place(url=url)}: write qdrant://HOST:PORT/NAME, and the key with --store-key")
    return Place(url=url, name=parts[-1])
