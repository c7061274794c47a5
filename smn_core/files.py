"""Writing a file so that readers see all of it or nothing of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smn_core.errors import InvalidArgument


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Read once, at import: reading sets it, which two threads must not do at once.
UMASK = _read_umask()


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` on success, remove it on any failure.

    The temporary name keeps the suffix, since some writers (numpy, matplotlib) choose the format by it.

    Raises:
        InvalidArgument: the folder does not exist, cannot be written, or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidArgument(f"cannot write {path}: it is a folder")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise InvalidArgument(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        os.fchmod(handle, 0o666 & ~UMASK)
        os.close(handle)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace the file at `path` by `data` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
