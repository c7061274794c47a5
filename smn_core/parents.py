"""Where the file of a parent is: the mask that another one is coded against, by its digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from smn_core.tensorfile import InvalidTensorFile, digest_of, read_metadata

Find = Callable[[str], bytes | None]
"""The bytes of the file with a digest, or None where it is not there."""


def beside(file: Path, named: Path | None = None) -> Find:
    """Finds a parent as `named`, or else among the mask files in the folder of `file`.

    Raises:
        OSError: `named` cannot be read.
    """

    def find(digest: str) -> bytes | None:
        places = [*([named] if named is not None else []), *sorted(file.parent.glob("*.smn"))]
        return next((data for data in map(Path.read_bytes, places) if digest_of(data) == digest), None)

    return find


def parent_path(file: Path) -> Path:
    """Where the parent of a mask file goes that comes with it: `NAME.parent.smn` beside `NAME.smn`."""
    return file.with_name(f"{file.stem}.parent.smn")


def parent_of(data: bytes) -> str | None:
    """The digest that a mask file names as its parent; nothing else is checked."""
    try:
        return read_metadata(data).get("parent")
    except InvalidTensorFile:
        return None  # what is wrong with it, parsing it says
