"""Hold a run's folder: two runs that learn into one folder would mix what they leave."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smn_core.errors import Conflict


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Be the only process that learns into `folder`, which is made if it is not there.

    The kernel keeps the lock, so a process that was killed holds nothing. A folder that is empty in the end is removed.

    Raises:
        Conflict: another process learns into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another run learns into {folder}: wait for it, or give this one another --out") from error
        except OSError:  # a disk without locks
            pass
        try:
            yield
        finally:
            with suppress(OSError):  # it holds a run
                folder.rmdir()
    finally:
        os.close(handle)
