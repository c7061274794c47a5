"""How many images may be in work at once: bounded before anything of a request is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from smn_core.errors import SMNError


class QueueFull(SMNError):
    """As many images as the server admits are in work already."""

    code = "queue_full"


class Admission:
    """Counts images between admission and answer, up to a limit. Lives on one event loop.

    Args:
        max_images: admitted at once, decoding and waiting together.
    """

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._admitted = 0

    @property
    def admitted(self) -> int:
        """Images between admission and answer."""
        return self._admitted

    @contextmanager
    def admit(self, n_images: int) -> Iterator[None]:
        """Take `n_images` places inside the block.

        Raises:
            QueueFull: there are not so many.
        """
        if self._admitted + n_images > self._max_images:
            raise QueueFull(f"{self._admitted} images are in work, at most {self._max_images} are admitted")
        self._admitted += n_images
        try:
            yield
        finally:
            self._admitted -= n_images
