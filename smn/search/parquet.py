"""A collection in one Parquet file. New rows go to `photos.parquet.part/` first; the file is replaced at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from jaxtyping import Float32
from numpy import ndarray

from smn.search.near import nearest_of
from smn.search.parts import PartedStore, Source, about_of, settle, source_of
from smn.search.store import Found, schema_of, vectors_of, writing
from smn_core.errors import InvalidData

WHOLE = "whole"
"""The new file in the making: in the folder of parts, so that nothing of a stopped run outlives the next one."""


class ParquetStore(PartedStore):
    """A Parquet file and its parts.

    Raises:
        InvalidData: something else is there, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path
        if path.exists():
            self.about = self._parts.check(about_of(path), self.about)

    def finish(self) -> None:
        """Write the file anew where there are parts or removals, a few thousand rows at a time."""
        if self.about is None or not self._parts.waiting:
            return
        new = self._parts.folder / WHOLE
        with writing(self._path):
            self._parts.folder.mkdir(exist_ok=True)
            with pq.ParquetWriter(new, schema_of(self.about)) as writer:
                for batch in self._parts.merged(self._whole(), self.about):
                    writer.write_batch(batch)
            settle(new)
            new.replace(self._path)
        self._parts.done()

    def nearest(self, vector: Float32[ndarray, "d"], top: int) -> Found:
        return nearest_of(self.blocks(), vector, top)

    def blocks(self) -> Iterator[tuple[list[str], Float32[ndarray, "n d"]]]:
        assert self.about is not None
        if not self._path.exists():
            raise InvalidData(f"{self._path} is not finished: run smn index again")
        for batch in source_of(self._path)(("path", "vector")):
            yield batch.column("path").to_pylist(), vectors_of(batch, self.about.width)

    def close(self) -> None:
        pass

    def _whole(self) -> list[Source]:
        return [source_of(self._path)] if self._path.exists() else []
