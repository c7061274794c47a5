"""Where the file of a parent is: the mask that another one is coded against, by its digest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from smn_core.files import read_bytes
from smn_core.tensorfile import InvalidTensorFile, digest_of, read_metadata

Find = Callable[[str], bytes | None]
"""The bytes of the file with a digest, or None where it is not there."""


def beside(file: Path, named: Path | None = None) -> Find:
    """Finds a parent as `named`, or else among the mask files in the folder of `file`.

    Raises:
        OSError: `named` cannot be read.
    """

    def find(digest: str) -> bytes | None:
        if named is not None and digest_of(data := read_bytes(named)) == digest:
            return data
        for place in sorted(file.parent.glob("*.smn")):
            with suppress(OSError):  # a folder of that name, or somebody else's file
                if digest_of(data := read_bytes(place)) == digest:
                    return data
        return None

    return find


def parent_path(file: Path) -> Path:
    """Where the parent of a mask file goes that comes with it: `NAME.parent.smn` beside `NAME.smn`."""
    return file.with_name(f"{file.stem}.parent.smn")


def parent_of(data: bytes) -> str | None:
    """The digest that a mask file names as its parent; None of any other file. Nothing else is checked."""
    try:
        metadata = read_metadata(data)
    except InvalidTensorFile:
        return None  # what is wrong with it, parsing it says
    return metadata.get("parent") if metadata.get("format") == "smn-mask/1" else None
