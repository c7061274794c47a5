"""The images that wait: those of a request are a batch, and each waits in the quick lane or in the slow one.

All begin in the quick lane. Those that are slow by their header, or that took more processor time than a quick one
may, go over. Of the workers all but one may be slow at once, and one may always be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from service.decoding.turns import Turns
from smn_core.errors import InvalidImage


class Batch:
    """The images of one request, and the pixels that come of them."""

    def __init__(self, client: Hashable, n_images: int, input_px: tuple[int, int]) -> None:
        self.path = (client, id(self))
        self.pixels = np.empty((n_images, *input_px, 3), np.uint8)
        self.wanted = set(range(n_images))
        self.error: InvalidImage | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, number: int, error: InvalidImage | None = None) -> None:
        """An image is decoded or refused. Of several that are refused the first one counts, as if they went in turn."""
        self.wanted.discard(number)
        if error is not None:
            self.error = error
            self.wanted = {other for other in self.wanted if other < number}
        if not self.wanted and not self.done.done():
            self.done.set_result(None)


@dataclass(eq=False)
class Job:
    """One image of a batch."""

    batch: Batch
    number: int
    data: bytes
    slow: bool = False

    @property
    def wanted(self) -> bool:
        return self.number in self.batch.wanted

    def refuse(self, kind: type[InvalidImage], text: str) -> None:
        """Settle it with an error that names it, if it is one of several."""
        several = len(self.batch.pixels) > 1
        self.batch.settle(self.number, kind(f"image {self.number}: {text}" if several else text))


class Lanes:
    """Whose turn it is in either lane, and which lane's."""

    def __init__(self) -> None:
        self._quick: Turns[Job] = Turns()
        self._slow: Turns[Job] = Turns()

    def __len__(self) -> int:
        return len(self._quick) + len(self._slow)

    def add(self, job: Job) -> None:
        self._quick.push(job.batch.path, job)

    def add_slow(self, job: Job) -> None:
        """Let an image wait that was found to be slow."""
        job.slow = True
        self._slow.push(job.batch.path, job)

    def drop(self, batch: Batch) -> None:
        """Forget the images of a request."""
        self._quick.drop(batch.path)
        self._slow.drop(batch.path)

    def take(self, n_slow: int, most_slow: int) -> Job | None:
        """The image whose turn it is while `n_slow` of at most `most_slow` slow ones are being decoded."""
        while lane := self._next(n_slow, most_slow):
            job = lane.pop()
            if job.wanted:
                return job
        return None

    def _next(self, n_slow: int, most_slow: int) -> Turns[Job] | None:
        if self._slow and n_slow == 0:
            return self._slow
        if self._quick:
            return self._quick
        return self._slow if self._slow and n_slow < most_slow else None
