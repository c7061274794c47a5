"""What both the client and the embedder make of parts of an answer as they come: all of them, or row by row."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TypeVar

from numpy import ndarray

from smn_core.answers import Gathered, Part, Row, rows_of
from smn_core.collection import Collection
from smn_core.given import Images
from smn_core.verbs.counting import counting

T = TypeVar("T")


def gather(parts: Generator[Part[T], None, None], images: Images, *, progress: bool) -> Gathered[T]:
    """All parts of an answer about `images`; with `progress` behind a bar."""
    found: Gathered[T] = Gathered()
    with closing(parts), counting(images, progress) as count:
        for part in parts:
            found.add(part)
            count(part.n_images)
    return found


def gather_rows(
    parts: Generator[Part[ndarray], None, None], images: Images, *, progress: bool
) -> Generator[Row, None, None]:
    """The rows of an answer as its parts come.

    Raises:
        OtherSpace: two parts are in two spaces.
    """
    seen = Collection()
    with closing(parts), counting(images, progress) as count:
        for part in parts:
            if part.space:
                seen.admit(part.space)
            yield from rows_of(part)
            count(part.n_images)
