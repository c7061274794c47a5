"""Reading files that are files, and writing one so that readers see all of it or nothing of it."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from smn_core.errors import InvalidArgument

OTHER = "it is no regular file"
"""What is said of pipes, sockets and devices: one is waited for without end, another never ends."""


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file to be read. A named pipe is opened without waiting for a writer that never comes, and refused.

    Raises:
        OSError: it is not there, cannot be read, or is no regular file; it names `path`.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, OTHER, str(path))


def read_bytes(path: Path | str) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: as `open_regular`, or they are more than the memory takes.
    """
    with open_regular(path) as file:
        try:
            return file.read()
        except MemoryError as error:
            said = f"its {os.fstat(file.fileno()).st_size:,} bytes are more than the memory takes"
            raise OSError(errno.ENOMEM, said, str(path)) from error


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` on success, remove it on any failure.

    The temporary name keeps the suffix, since some writers (numpy, matplotlib) choose the format by it. A link stays
    one: what it leads to is replaced.

    Raises:
        InvalidArgument: the folder does not exist, cannot be written, or `path` is a folder, a pipe or a device.
        OSError: what ended the writing in the block; it names `path` where it named nothing or the temporary path.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidArgument(f"cannot write {path}: it is a folder")
    if is_other(path):
        raise InvalidArgument(f"cannot write {path}: {OTHER}")
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    try:
        # Not tempfile's: its files are for their owner alone, and reading the umask to widen them races in threads.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise InvalidArgument(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(place)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path | str, option: str = "--out") -> None:
    """Check, before any work, that a file can be written at `path`; nothing is left there.

    Raises:
        InvalidArgument: it is a folder, a pipe or a device, or its folder is missing or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidArgument(f"{option} {path} is a folder: give the name of a file")
    if is_other(path):
        raise InvalidArgument(f"{option} {path}: {OTHER}: give the name of a file")
    folder = path.parent if not path.is_symlink() else Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InvalidArgument(f"{option} {path}: the folder {folder} does not exist")
    probe = folder / f".{secrets.token_hex(8)}"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        probe.unlink()
    except OSError as error:
        raise InvalidArgument(f"{option} {path}: cannot write into {folder}: {error.strerror}") from error


def is_other(path: Path) -> bool:
    """Whether there is something else than a file or folder: a rename would put a file in the place of /dev/null."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace the file at `path` by `data` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
