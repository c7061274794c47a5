"""Writing a file so that readers see all of it or nothing of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smn_core.errors import InvalidArgument


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` on success, remove it on any failure.

    The temporary name keeps the suffix, since some writers (numpy, matplotlib) choose the format by it.

    Raises:
        InvalidArgument: the folder does not exist, cannot be written, or `path` is a folder.
        OSError: what ended the writing in the block; it names `path` where it named nothing or the temporary path.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidArgument(f"cannot write {path}: it is a folder")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    try:
        # Not tempfile's: its files are for their owner alone, and reading the umask to widen them races in threads.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise InvalidArgument(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path | str, option: str = "--out") -> None:
    """Check, before any work, that a file can be written at `path`; nothing is left there.

    Raises:
        InvalidArgument: it is a folder, or its folder is missing or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidArgument(f"{option} {path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise InvalidArgument(f"{option} {path}: the folder {path.parent} does not exist")
    probe = path.with_name(f".{secrets.token_hex(8)}")
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        probe.unlink()
    except OSError as error:
        raise InvalidArgument(f"{option} {path}: cannot write into {path.parent}: {error.strerror}") from error


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace the file at `path` by `data` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
