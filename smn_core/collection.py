"""A collection of vectors, and the one space that they are in.

photos = Collection(client, "photos@champion", space=saved)      # None: the first answer decides
z = photos.embed(files).embeddings
saved = photos.space                                             # to be kept beside the vectors
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from smn_core.errors import InvalidArgument, OtherSpace


@runtime_checkable
class InSpace(Protocol):
    """An answer that says which space it is in."""

    @property
    def space(self) -> str: ...


Answer = TypeVar("Answer", bound=InSpace)


class Collection:
    """Remembers the space of the first answer that it takes, and refuses answers of every other one.

    Args:
        client: a Client or an Embedder that `embed` asks, always with the words that follow. An AsyncClient is asked
            by the caller, who hands the answer to `take`.
        mask, cascade, mode, normalize, dimensions: as `Client.embed`.
        space: the id under which the vectors are kept already; None: the first answer's.
    """

    def __init__(
        self,
        client: Any = None,
        mask: Any = None,
        *,
        cascade: Any = None,
        mode: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        space: str | None = None,
    ) -> None:
        self.space = space or None
        self._client = client
        self._through = {"mask": mask, "cascade": cascade, "mode": mode}
        self._through |= {"normalize": normalize, "dimensions": dimensions}

    def embed(self, images: Any, *, strict: bool = True, progress: bool = False) -> Any:
        """Embeddings of images that belong to the collection. A server is told its space, and refuses before decode.

        Raises:
            OtherSpace: the client answers in another space by now.
            InvalidArgument: the collection has no client.
            others: as `Client.embed`.
        """
        if self._client is None:
            raise InvalidArgument("the collection has no client: Collection(client, mask), or take(answer)")
        words = {**self._through, "space": self.space, "strict": strict, "progress": progress}
        return self.take(self._client.embed(images, **words))

    def take(self, found: Answer) -> Answer:
        """The same answer, if its vectors may go into this collection.

        Raises:
            OtherSpace: they may not; the message names both spaces.
        """
        self.admit(found.space)
        return found

    def admit(self, space: str) -> None:
        """Remember the first space; raise OtherSpace for every other one, and for vectors that name none."""
        if space and self.space in (None, space):
            self.space = space
            return
        said = f"in the space {space}" if space else "in a space that the server does not name"
        raise OtherSpace(
            f"the vectors are {said}, the collection's in {self.space or 'none yet'}: they cannot be compared. Name "
            "the version that the collection was made with, or keep two collections"
        )
