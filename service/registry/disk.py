"""What the registry in a folder does with files: whole files or none, a lock with an end, and what a crash left."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.registry.watch import ReadOnly
from service.registry.within import TooLate, left_s
from smn_core.errors import Unavailable

Stamp = tuple[int, int, int]
OWNED_S = 3600.0
"""A half-written file that is older belongs to nobody, whoever holds the lock."""


def write(path: Path, data: bytes, mtime_ns: int | None = None) -> None:
    """Replace a file in one step, flushed to disk."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            if mtime_ns is not None:
                os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(error) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk: until then a rename in it may be lost."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def stamp_of(status: os.stat_result) -> Stamp:
    """What differs once a file has been replaced."""
    return status.st_mtime_ns, status.st_ino, status.st_size


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold a lock against threads and processes. It ends with the descriptor, so a crash releases it too.

    Raises:
        TooLate: others held it until the deadline.
        Unavailable: there can be no lock.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise away(error) from error
    try:
        _wait_for(handle, how)
        yield
    finally:
        os.close(handle)


def sweep(folders: Iterable[Path], oldest_s: float) -> int:
    """Remove half-written files that are older; returns how many."""
    removed = 0
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            try:
                if time.time() - path.stat().st_mtime >= oldest_s:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:  # its owner was faster
                continue
    return removed


def away(error: OSError) -> Unavailable:
    """The error for a folder that cannot be used. It tells no path: clients read it."""
    return Unavailable(f"the registry cannot be used: {error.strerror or type(error).__name__}")


def unwritable(error: OSError) -> ReadOnly:
    """The error for a folder that takes no file: a full disk, a read-only one."""
    return ReadOnly(f"the registry cannot be written: {error.strerror or type(error).__name__}")


def _wait_for(handle: int, how: int) -> None:
    # flock waits without an end or not at all, and nothing tells when it could be had: it is asked again and again.
    pause_s, ends = 0.0005, time.monotonic() + left_s()
    while True:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            left = ends - time.monotonic()
            if left <= 0:
                raise TooLate("others held the registry's lock until the deadline") from error
            time.sleep(min(pause_s, left))
            pause_s = min(2 * pause_s, 0.02)
        except OSError as error:
            raise away(error) from error
        else:
            return
