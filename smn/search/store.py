"""A collection of vectors, whatever keeps it: one row an image, with its path and the file's stamp."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jaxtyping import Float32
from numpy import ndarray

from smn.search.about import About
from smn_core.errors import Conflict, InvalidArgument, InvalidData, SMNError

if TYPE_CHECKING:
    import pyarrow as pa

Stamp = tuple[int, int]
"""Bytes and time of the last change (ns) of a file: an image that was changed since is embedded again."""
Found = list[tuple[str, float]]
"""Paths and their cosine similarity to a query, the most similar first."""


@dataclass(frozen=True)
class Rows:
    """Images that are ready to be kept: a path, a stamp and a vector each."""

    paths: Sequence[str]
    stamps: Sequence[Stamp]
    vectors: Float32[ndarray, "n d"]


class Store(Protocol):
    """One collection. Whatever stops a process, what `put` has returned from is kept; readers see whole rows only."""

    @property
    def about(self) -> About | None:
        """What it says of itself; None until the first rows are put."""

    def begin(self, about: About) -> None:
        """Say what it is; once, before the first rows."""

    def stamps(self) -> Mapping[str, Stamp]:
        """The stamp of each image in it, by path."""

    def put(self, rows: Rows, known: Collection[str]) -> None:
        """Keep rows; those whose path is among `known` take the place of the old ones."""

    def remove(self, paths: Sequence[str]) -> None:
        """Forget images."""

    def finish(self) -> None:
        """Bring what was written into the form that is read fastest."""

    def nearest(self, vector: Float32[ndarray, "d"], top: int) -> Found:
        """The `top` nearest images of all by cosine similarity; the search is exact."""

    def blocks(self) -> Iterator[tuple[list[str], Float32[ndarray, "n d"]]]:
        """All paths and vectors, some thousand at a time, in no order that anyone may count on."""

    def close(self) -> None:
        """Give back connections and memory."""


@contextmanager
def locked(path: Path, called: str | None = None) -> Iterator[None]:
    """Be the only process that writes a collection; a process that was killed holds nothing.

    Args:
        called: what messages call it, where that is not its path.

    Raises:
        Conflict: another process writes it.
    """
    lock, called = path.with_name(f".{path.name}.lock"), called or str(path)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another smn index writes {called}: wait for it") from error
        # The one before may have deleted the file after it was opened here: then this lock keeps nobody out.
        if not lock.exists() or os.fstat(file.fileno()).st_ino != lock.stat().st_ino:
            raise Conflict(f"another smn index has just written {called}: try again")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def reading(where: Path | str) -> Iterator[None]:
    """Turn whatever a library raises on damaged files into one line.

    Raises:
        InvalidData: a collection cannot be read.
    """
    try:
        yield
    except SMNError:
        raise
    except Exception as error:  # the libraries raise whatever damaged bytes lead them to
        raise InvalidData(f"{where} is damaged, or no collection of smn index: {first_line(error)}") from error


@contextmanager
def writing(where: Path | str) -> Iterator[None]:
    """Turn whatever a library raises on a full disk or a damaged table into one line.

    Raises:
        InvalidArgument: a collection cannot be written.
    """
    try:
        yield
    except SMNError:
        raise
    except Exception as error:  # as above
        raise InvalidArgument(f"cannot write {where}: {first_line(error)}") from error


def first_line(error: object) -> str:
    """What an error says, on one line."""
    return str(error).strip().split("\n")[0][:200]


def schema_of(about: About) -> pa.Schema:
    """The columns of a collection, and what it says of itself."""
    import pyarrow as pa

    fields = [
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("changed_ns", pa.int64()),
        ("vector", pa.list_(pa.float32(), about.width)),
    ]
    return pa.schema(fields, metadata=about.as_metadata())


def check_schema(schema: pa.Schema, about: About, where: str) -> None:
    """Raise InvalidData unless the columns are those of a collection."""
    if not schema.equals(schema_of(about), check_metadata=False):
        raise InvalidData(f"{where} is damaged: its columns are not those of a collection")


def table_of(rows: Rows, about: About) -> pa.Table:
    """Rows as an Arrow table."""
    import pyarrow as pa

    vectors = pa.array(rows.vectors.reshape(-1), pa.float32())
    columns = [
        pa.array(rows.paths, pa.string()),
        pa.array([n_bytes for n_bytes, _ in rows.stamps], pa.int64()),
        pa.array([changed for _, changed in rows.stamps], pa.int64()),
        pa.FixedSizeListArray.from_arrays(vectors, about.width),
    ]
    return pa.Table.from_arrays(columns, schema=schema_of(about))


def vectors_of(batch: pa.RecordBatch, width: int) -> Float32[ndarray, "n d"]:
    """The vectors of an Arrow batch."""
    found: ndarray = batch.column("vector").flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return found


def stamps_of(batch: pa.RecordBatch) -> dict[str, Stamp]:
    """The stamps of an Arrow batch, by path."""
    columns = (batch.column(name).to_pylist() for name in ("path", "bytes", "changed_ns"))
    return {path: (n_bytes, changed) for path, n_bytes, changed in zip(*columns, strict=True)}
