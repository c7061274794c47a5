"""Read an image's file: what is no regular file, or is far too large for an image, is refused before it is read."""

from __future__ import annotations

import os
from pathlib import Path

from smn_core.errors import ImageTooLarge, InvalidImage
from smn_core.files import OTHER, open_regular

MAX_FILE_BYTES = 512 * 2**20


def read_image_file(path: Path) -> bytes:
    """The bytes of an image's file.

    A named pipe is opened without waiting for a writer that never comes, and refused as devices and folders are.

    Raises:
        OSError: it is not there, or cannot be read.
        InvalidImage: it is no regular file.
        ImageTooLarge: more than `MAX_FILE_BYTES`; nothing of it is read.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        if error.strerror == OTHER or isinstance(error, IsADirectoryError):
            raise InvalidImage(OTHER) from error
        raise
    with file:
        n_bytes = os.fstat(file.fileno()).st_size
        if n_bytes > MAX_FILE_BYTES:
            raise ImageTooLarge(f"the file has {n_bytes:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        return file.read(n_bytes)
