"""Read an image's file: what is no regular file, or is far too large for an image, is refused before it is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from smn_core.errors import ImageTooLarge, InvalidImage

MAX_FILE_BYTES = 512 * 2**20


def read_image_file(path: Path) -> bytes:
    """The bytes of an image's file.

    A named pipe is opened without waiting for a writer that never comes, and refused as devices and folders are.

    Raises:
        OSError: it is not there, or cannot be read.
        InvalidImage: it is no regular file.
        ImageTooLarge: more than `MAX_FILE_BYTES`; nothing of it is read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidImage("it is no regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise ImageTooLarge(f"the file has {found.st_size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        with open(handle, "rb", closefd=False) as file:
            return file.read(found.st_size)
    finally:
        os.close(handle)
