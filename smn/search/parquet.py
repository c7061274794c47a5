"""A collection in one Parquet file. New rows go to `photos.parquet.part/` first; the file is replaced at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from numpy import ndarray

from smn.search.about import About, read_about
from smn.search.near import nearest_of
from smn.search.store import (
    Found,
    Rows,
    Stamp,
    check_schema,
    reading,
    schema_of,
    stamps_of,
    table_of,
    vectors_of,
    writing,
)
from smn_core.errors import InvalidData
from smn_core.files import replacing

if TYPE_CHECKING:
    from pyarrow import RecordBatch

ROWS_AT_ONCE = 4096
WHOLE = "whole"
"""The new file in the making: in the folder of parts, so that nothing of a stopped run outlives the next one."""


class ParquetStore:
    """A Parquet file and the parts of a run that was stopped; a later part counts before an earlier one and the file.

    Raises:
        InvalidData: something else is there, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._folder = path, path.with_name(f"{path.name}.part")
        self.about: About | None = None
        self._removed: set[str] = set()
        for file in self._files():
            with reading(file):
                schema = pq.read_schema(file)
            about = read_about(schema.metadata, str(file))
            check_schema(schema, about, str(file))
            if self.about is not None and about.space != self.about.space:
                raise InvalidData(f"{self._folder} has the space {about.space}, not {self.about.space}: delete it")
            self.about = about

    def begin(self, about: About) -> None:
        self.about = about

    def stamps(self) -> Mapping[str, Stamp]:
        found: dict[str, Stamp] = {}
        for file in self._files():
            for batch in _batches(file, "path", "bytes", "changed_ns"):
                found.update(stamps_of(batch))
        return found

    def put(self, rows: Rows, known: Collection[str]) -> None:  # noqa: ARG002 (the later part counts)
        assert self.about is not None
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            with replacing(self._folder / f"{len(self._parts()):08}.parquet") as temporary:
                pq.write_table(table_of(rows, self.about), temporary)
        self._removed.difference_update(rows.paths)

    def remove(self, paths: Sequence[str]) -> None:
        self._removed.update(paths)

    def finish(self) -> None:
        """Write the file anew where there are parts or removals, a few thousand rows at a time."""
        if self.about is None or not (self._removed or self._parts()):
            return
        files = self._files()
        last: dict[str, int] = {}
        for number, file in enumerate(files):
            for batch in _batches(file, "path"):
                last.update(dict.fromkeys(batch.column("path").to_pylist(), number))
        schema, whole = schema_of(self.about), self._folder / WHOLE
        with writing(self._path):
            self._folder.mkdir(exist_ok=True)
            with pq.ParquetWriter(whole, schema) as writer:
                for number, file in enumerate(files):
                    for batch in _batches(file, *schema.names):
                        paths = batch.column("path").to_pylist()
                        kept = pa.array([last[path] == number and path not in self._removed for path in paths])
                        writer.write_batch(batch.filter(kept).replace_schema_metadata(schema.metadata))
            with whole.open("rb") as written:
                os.fsync(written.fileno())
            whole.replace(self._path)
        # A stop in between leaves parts whose rows are in the file already: the next run finds nothing new in them.
        shutil.rmtree(self._folder, ignore_errors=True)

    def nearest(self, vector: Float32[ndarray, "d"], top: int) -> Found:
        return nearest_of(self.blocks(), vector, top)

    def blocks(self) -> Iterator[tuple[list[str], Float32[ndarray, "n d"]]]:
        assert self.about is not None
        if not self._path.exists():
            raise InvalidData(f"{self._path} is not finished: run smn index again")
        for batch in _batches(self._path, "path", "vector"):
            yield batch.column("path").to_pylist(), vectors_of(batch, self.about.width)

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.parquet")) if self._folder.is_dir() else []

    def _files(self) -> list[Path]:
        return [*([self._path] if self._path.exists() else []), *self._parts()]


def _batches(file: Path, *columns: str) -> Iterator[RecordBatch]:
    with reading(file), pq.ParquetFile(file) as opened:
        yield from opened.iter_batches(ROWS_AT_ONCE, columns=list(columns))
