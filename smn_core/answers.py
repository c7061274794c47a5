"""What comes back for images, the same from a server as from this process: vectors, or labels, and their space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.collection import Collection
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.given import Item

T = TypeVar("T")


@dataclass(frozen=True)
class Skipped:
    """An image that cannot be read: its number among those given, its name, and why."""

    number: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"

    def as_json(self) -> dict[str, str]:
        """As a file of vectors names it."""
        return {"path": self.name, "reason": self.reason}


@dataclass(frozen=True)
class Embeddings:
    """Embeddings, a row for each image that could be read, in the order of the images.

    Args:
        embeddings: float32 [n, d].
        digest: of the mask or cascade, or "root" if there was none.
        server_timing: where a server's time went, of the last request; empty without a server.
        space: the id of the space that the vectors are in: only within one may they be compared.
        names: of the images, row by row: their paths, or `image 3` for the fourth that was given without one.
        kept: their numbers among the images given.
        skipped: images without a row; none where `strict` was said.
    """

    embeddings: Float32[ndarray, "n d"]
    digest: str
    server_timing: str = ""
    space: str = ""
    names: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Label:
    """What an image is: the most probable class, then probabilities and their classes, from the most probable on.

    `num_classes` counts all classes, however few of them are here.
    """

    label: str
    probs: tuple[float, ...]
    classes: tuple[str, ...]
    num_classes: int


@dataclass(frozen=True)
class Labels:
    """The labels of images; everything else as in `Embeddings`."""

    data: tuple[Label, ...]
    digest: str
    space: str = ""
    names: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Row:
    """One image of a stream: its vector, or why it has none."""

    number: int
    name: str
    vector: Float32[ndarray, "d"] | None
    error: str | None = None
    digest: str = ""
    space: str = ""


@dataclass(frozen=True)
class Part(Generic[T]):
    """What came of a few images that follow each other: a row for each of `items`, the others are skipped."""

    items: Sequence[Item]
    rows: Sequence[T]
    skipped: Sequence[Skipped] = ()
    digest: str = ""
    space: str = ""
    server_timing: str = ""

    @property
    def n_images(self) -> int:
        return len(self.items) + len(self.skipped)


@dataclass
class Gathered(Generic[T]):
    """The parts of one call put together. All must be in one space: a name that is pushed over meanwhile is refused."""

    rows: list[T] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    collection: Collection = field(default_factory=Collection)
    digest: str = "root"
    server_timing: str = ""

    def add(self, part: Part[T]) -> None:
        """Take in the next part.

        Raises:
            OtherSpace: its vectors are in another space than those before it.
        """
        self.skipped += sorted(part.skipped, key=lambda left: left.number)
        if not part.items:
            return
        if part.space:  # a server of before spaces names none
            self.collection.admit(part.space)
        self.rows += part.rows
        self.items += part.items
        self.digest, self.server_timing = part.digest, part.server_timing

    def embeddings(self: Gathered[ndarray]) -> Embeddings:
        """Raise InvalidArgument without any image, InvalidData if none could be read."""
        self._require_rows()
        names, kept = self._named()
        return Embeddings(
            np.stack(self.rows), self.digest, self.server_timing, self.collection.space or "", names, kept, self._left()
        )

    def labels(self: Gathered[Label]) -> Labels:
        """Raise InvalidArgument without any image, InvalidData if none could be read."""
        self._require_rows()
        return Labels(tuple(self.rows), self.digest, self.collection.space or "", *self._named(), self._left())

    def _named(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return tuple(item.name for item in self.items), tuple(item.number for item in self.items)

    def _left(self) -> tuple[Skipped, ...]:
        return tuple(self.skipped)

    def _require_rows(self) -> None:
        if self.rows:
            return
        if not self.skipped:
            raise InvalidArgument("no image was given")
        raise InvalidData(f"none of the {len(self.skipped)} images can be read; the first: {self.skipped[0]}")


def rows_of(part: Part[ndarray]) -> Iterator[Row]:
    """The images of a part in their order, those that were skipped among them."""
    made = [Row(i.number, i.name, z, None, part.digest, part.space) for i, z in zip(part.items, part.rows, strict=True)]
    made += [Row(left.number, left.name, None, left.reason) for left in part.skipped]
    return iter(sorted(made, key=lambda row: row.number))
