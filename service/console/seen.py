"""Vectors of the gallery's pictures that were embedded before, by space and picture, so that a map is made in steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from jaxtyping import Float32
from numpy import ndarray

LIMIT_BYTES = 64 * 2**20


class Seen:
    """Keeps what was used last, up to a limit. Lives on one event loop."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes, self._bytes = limit_bytes, 0
        self._rows: OrderedDict[tuple[Hashable, str], Float32[ndarray, "d"]] = OrderedDict()

    def get(self, space: Hashable, picture_id: str) -> Float32[ndarray, "d"] | None:
        row = self._rows.get((space, picture_id))
        if row is not None:
            self._rows.move_to_end((space, picture_id))
        return row

    def put(self, space: Hashable, picture_id: str, row: Float32[ndarray, "d"]) -> None:
        """Keep a copy of a vector: a view would keep all of its batch."""
        if (space, picture_id) in self._rows:
            return
        self._rows[space, picture_id] = row.copy()
        self._bytes += row.nbytes
        while self._bytes > self._limit_bytes:
            self._bytes -= self._rows.popitem(last=False)[1].nbytes
