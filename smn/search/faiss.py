"""A collection as a FAISS index: `photos.faiss` has the vectors, `photos.faiss.rows.parquet` what each of them shows.

The index is flat, of vectors of length 1, by inner product; so anything that reads FAISS may search it. Its sidecar
names the digest of the index that it belongs to, and new rows wait in `photos.faiss.part/` as those of Parquet do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from numpy import ndarray

from smn.search.about import read_about
from smn.search.near import lengths_of, unit
from smn.search.parts import ROWS_AT_ONCE, PartedStore, Source, settle
from smn.search.store import Found, reading, vectors_of, writing
from smn_core.errors import InvalidData

if TYPE_CHECKING:
    from pyarrow import RecordBatch

DIGEST = b"smn.index"
"""The key of the sidecar's metadata that holds the hex sha256 of the index."""
COLUMNS = [("path", pa.string()), ("bytes", pa.int64()), ("changed_ns", pa.int64()), ("length", pa.float32())]
WHOLE, WHOLE_ROWS = "whole", "whole.rows"
"""The new files in the making, in the folder of parts."""


class FaissStore(PartedStore):
    """An index, its sidecar and the parts of a run that was stopped. The index is held in memory.

    Raises:
        InvalidData: something else is there, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path, self._rows_path = path, path.with_name(f"{path.name}.rows.parquet")
        self._index: Any = None
        self._rows = pa.table({name: pa.array([], kind) for name, kind in COLUMNS})
        self._paths: list[str] = []
        if path.exists():
            self._open()
        elif self._rows_path.exists():
            raise InvalidData(f"{self._rows_path} is there without {path}: delete it, and run smn index again")

    def finish(self) -> None:
        """Write index and sidecar anew where there are parts or removals."""
        if self.about is None or not self._parts.waiting:
            return
        index, tables = faiss.IndexFlatIP(self.about.width), []
        new, new_rows = self._parts.folder / WHOLE, self._parts.folder / WHOLE_ROWS
        with writing(self._path):
            for batch in self._parts.merged(self._whole(), self.about):
                vectors = vectors_of(batch, self.about.width)
                index.add(unit(vectors))
                tables.append(_without_vectors(batch, lengths_of(vectors)))
            self._parts.folder.mkdir(exist_ok=True)
            faiss.write_index(index, str(new))
            metadata = {**self.about.as_metadata(), DIGEST: _digest(new).encode()}
            rows = pa.Table.from_batches(tables, pa.schema(COLUMNS)).replace_schema_metadata(metadata)
            pq.write_table(rows, new_rows)
            settle(new)
            settle(new_rows)
            new.replace(self._path)
            # A stop here leaves the new index beside the old sidecar: the one in the folder of parts belongs to it.
            new_rows.replace(self._rows_path)
        self._parts.done()
        self._take(index, rows)

    def nearest(self, vector: Float32[ndarray, "d"], top: int) -> Found:
        assert self.about is not None
        self._require_finished()
        near, places = self._index.search(unit(vector[None]), min(top, max(self._index.ntotal, 1)))
        return [(self._paths[at], float(s)) for s, at in zip(near[0], places[0], strict=True) if at >= 0]

    def blocks(self) -> Iterator[tuple[list[str], Float32[ndarray, "n d"]]]:
        assert self.about is not None
        self._require_finished()
        for batch in self._batches(("path", "vector")):
            yield batch.column("path").to_pylist(), vectors_of(batch, self.about.width)

    def close(self) -> None:
        self._index = None

    def _open(self) -> None:
        with reading(self._path):
            digest = _digest(self._path)
        found = False
        for file in (self._rows_path, self._parts.folder / WHOLE_ROWS):
            if not file.exists():
                continue
            found = True
            with reading(file):
                rows = pq.read_table(file)
            about = read_about(rows.schema.metadata, str(file))
            if not rows.schema.equals(pa.schema(COLUMNS), check_metadata=False):
                raise InvalidData(f"{file} is damaged: its columns are not those of a collection")
            if rows.schema.metadata.get(DIGEST) != digest.encode():
                continue
            with reading(self._path):
                index = faiss.read_index(str(self._path))
            shape = (about.width, len(rows), faiss.METRIC_INNER_PRODUCT)
            if type(index) is not faiss.IndexFlatIP or (index.d, index.ntotal, index.metric_type) != shape:
                raise InvalidData(f"{self._path} is damaged: it is not the index that {file} tells of")
            self.about = self._parts.check(about, self.about)
            self._take(index, rows)
            return
        if found:
            raise InvalidData(f"{self._path} is damaged, or another's: {self._rows_path} does not belong to it")
        raise InvalidData(f"{self._path} was not made by smn index: {self._rows_path} is not beside it")

    def _take(self, index: Any, rows: pa.Table) -> None:
        self._index, self._rows, self._paths = index, rows, rows.column("path").to_pylist()

    def _require_finished(self) -> None:
        if self._index is None:
            raise InvalidData(f"{self._path} is not finished: run smn index again")

    def _whole(self) -> list[Source]:
        return [self._batches] if self._index is not None else []

    def _batches(self, columns: Sequence[str]) -> Iterator[RecordBatch]:
        """The rows of the index as `Parts` has them: a vector has the length back that it had."""
        assert self.about is not None
        first = 0
        for rows in self._rows.to_batches(ROWS_AT_ONCE):
            arrays = {name: rows.column(name) for name, _ in COLUMNS}
            if "vector" in columns:
                z = self._index.reconstruct_n(first, len(rows)) * rows.column("length").to_numpy()[:, None]
                flat = pa.array(z.astype(np.float32).reshape(-1), pa.float32())
                arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, self.about.width)
            first += len(rows)
            yield pa.RecordBatch.from_arrays([arrays[name] for name in columns], list(columns))


def _without_vectors(batch: RecordBatch, lengths: Float32[ndarray, "n"]) -> RecordBatch:
    arrays = [*(batch.column(name) for name, _ in COLUMNS[:3]), pa.array(lengths, pa.float32())]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(COLUMNS))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
