"""A collection of vectors of one space: it remembers the space, and takes no vector of another one.

photos = Collection(client, mask="photos@champion", space=saved)     # None: the first answer decides
z = photos.embed(files).embeddings
saved = photos.space                                                 # to be kept beside the vectors
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float32
from numpy import ndarray

from service.client import Client, Embeddings, Image
from smn_core.errors import Conflict


class OtherSpace(Conflict):
    """Vectors that cannot be compared with those of the collection."""

    code = "other_space"


class Collection:
    """Embeds for one collection, always through the same reference and in the same shape.

    Args:
        space: of the vectors that are in the collection already; None where it is empty.
    """

    def __init__(
        self,
        client: Client,
        mask: str | None = None,
        *,
        cascade: str | None = None,
        mode: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        space: str | None = None,
    ) -> None:
        self.space = space
        self._client, self._mask, self._cascade, self._mode = client, mask, cascade, mode
        self._normalize, self._dimensions = normalize, dimensions

    def embed(self, images: Sequence[Image] | Float32[ndarray, "n 3 h w"]) -> Embeddings:
        """Embeddings that belong to the collection.

        Raises:
            ServerError: 412 `other_space`, the reference gives vectors of another space by now; and as `Client.embed`.
            OtherSpace: the answer is in another space, or in none: the server keeps no promise about spaces.
        """
        found = self._client.embed(
            images,
            self._mask,
            cascade=self._cascade,
            mode=self._mode,
            normalize=self._normalize,
            dimensions=self._dimensions,
            space=self.space,
        )
        self.require(found.space)
        return found

    def require(self, space: str) -> None:
        """Raise OtherSpace unless vectors of a space belong here. The first space stays the collection's."""
        if not space or (self.space is not None and space != self.space):
            said = f"in the space {space}" if space else "in a space that the server does not name"
            raise OtherSpace(f"the vectors are {said}, the collection's are in {self.space or 'none yet'}")
        self.space = space
