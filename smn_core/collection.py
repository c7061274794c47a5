"""A collection of vectors, and the one space that they are in."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from smn_core.errors import OtherSpace


@runtime_checkable
class InSpace(Protocol):
    """An answer that says which space it is in."""

    @property
    def space(self) -> str: ...


Answer = TypeVar("Answer", bound=InSpace)


class Collection:
    """Remembers the space of the first answer that it takes, and refuses answers of every other one.

        photos = Collection(stored_id_or_None)
        found = photos.take(client.embed(new, mask="photos", space=photos.space))
        store(found.embeddings, photos.space)

    With `space=` a server refuses before it decodes; `take` keeps the promise whoever answers.

    Args:
        space: the id under which the vectors are kept already; None: the first answer's.
    """

    def __init__(self, space: str | None = None) -> None:
        self.space = space or None

    def take(self, found: Answer) -> Answer:
        """The same answer, if its vectors may go into this collection.

        Raises:
            OtherSpace: they may not; the message names both spaces.
        """
        self.admit(found.space)
        return found

    def admit(self, space: str) -> None:
        """Remember the first space; raise OtherSpace for every other one."""
        if self.space is None:
            self.space = space or None
        elif space != self.space:
            raise OtherSpace(
                f"vectors of the space {space or '(not said)'} among those of {self.space}: they cannot be compared. "
                "Name the version that the collection was made with, or keep two collections"
            )

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Collection) and other.space == self.space

    def __hash__(self) -> int:
        return hash(self.space)

    def __repr__(self) -> str:
        return f"Collection({self.space!r})"
