"""A collection in LanceDB, embedded: `photos.lance` is a table that anything that reads Lance can open."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lancedb
from jaxtyping import Float32
from numpy import ndarray

from smn.search.about import About, read_about
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

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 4096
PATHS_AT_ONCE = 500
"""Paths that one statement deletes."""


class LanceStore:
    """A Lance table. Every write is one commit, which is there as a whole or not at all.

    Raises:
        InvalidArgument: a name that LanceDB does not take.
        InvalidData: something else is there, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.about: About | None = None
        self._table: Any = None
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        if not (path / "_versions").is_dir():
            raise InvalidData(f"{path} was not made by smn index: name a collection that was, or a new place")
        with reading(path):
            self._table = lancedb.connect(str(path.parent)).open_table(path.stem)
            schema = self._table.schema
            self.about = read_about(schema.metadata, str(path))
            check_schema(schema, self.about, str(path))

    def begin(self, about: About) -> None:
        """Make the table, with its space in it, and rename it into place: there is never half of one."""
        making = self._path.with_name(f".{self._path.name}.new")
        shutil.rmtree(making, ignore_errors=True)
        with writing(self._path):
            lancedb.connect(str(making)).create_table(self._path.stem, schema=schema_of(about))
            (making / self._path.name).rename(self._path)
            making.rmdir()
            self._table = lancedb.connect(str(self._path.parent)).open_table(self._path.stem)
        self.about = about

    def stamps(self) -> Mapping[str, Stamp]:
        found: dict[str, Stamp] = {}
        for batch in self._scan("path", "bytes", "changed_ns"):
            found.update(stamps_of(batch))
        return found

    def put(self, rows: Rows, known: Collection[str]) -> None:
        assert self.about is not None
        table = table_of(rows, self.about)
        with writing(self._path):
            if any(path in known for path in rows.paths):
                merging = self._table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
                merging.execute(table)
            else:
                self._table.add(table)

    def remove(self, paths: Sequence[str]) -> None:
        with writing(self._path):
            for first in range(0, len(paths), PATHS_AT_ONCE):
                listed = ", ".join(f"'{_quoted(path)}'" for path in paths[first : first + PATHS_AT_ONCE])
                self._table.delete(f"path IN ({listed})")

    def finish(self) -> None:
        if self._table is None:
            return
        with writing(self._path), warnings.catch_warnings():
            # It warns of others that write at the same time: the lock keeps them away.
            warnings.simplefilter("ignore", UserWarning)
            self._table.optimize(cleanup_older_than=timedelta(0))

    def nearest(self, vector: Float32[ndarray, "d"], top: int) -> Found:
        with reading(self._path):
            asked = self._table.search(vector, vector_column_name="vector").distance_type("cosine")
            found = asked.bypass_vector_index().select(["path", "_distance"]).limit(top).to_arrow()
            distances = found.column("_distance").to_pylist()
            return [(path, 1 - d) for path, d in zip(found.column("path").to_pylist(), distances, strict=True)]

    def blocks(self) -> Iterator[tuple[list[str], Float32[ndarray, "n d"]]]:
        assert self.about is not None
        for batch in self._scan("path", "vector"):
            yield batch.column("path").to_pylist(), vectors_of(batch, self.about.width)

    def close(self) -> None:
        self._table = None

    def _scan(self, *columns: str) -> Iterator[pa.RecordBatch]:
        if self._table is not None:
            with reading(self._path):
                yield from self._table.search().select(list(columns)).to_batches(ROWS_AT_ONCE)


def _quoted(text: str) -> str:
    """A text as SQL writes it between quotes."""
    return text.replace("'", "''")
