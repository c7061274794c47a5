"""Rows that wait beside a collection's file, in `X.part/`, until the file is written anew with them."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from smn.search.about import About, read_about
from smn.search.store import Rows, Stamp, check_schema, reading, schema_of, stamps_of, table_of, writing
from smn_core.errors import InvalidData
from smn_core.files import replacing

if TYPE_CHECKING:
    from pyarrow import RecordBatch

ROWS_AT_ONCE = 4096
Source = Callable[[Sequence[str]], "Iterator[RecordBatch]"]
"""Names of columns -> the rows of a file, some thousand at a time."""


class Parts:
    """The parts of a run that was stopped or is under way; a later part counts before an earlier one and the file.

    Args:
        path: the collection's file.

    Raises:
        InvalidData: a part is damaged, or the parts have several spaces.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path.with_name(f"{path.name}.part")
        self._removed: set[str] = set()
        self.about: About | None = None
        for file in self._files():
            self.about = self.check(about_of(file), self.about)

    def check(self, about: About, known: About | None) -> About:
        """`about`. Raises InvalidData where it is of another space than what is known already."""
        if known is not None and about.space != known.space:
            raise InvalidData(f"{self.folder} has the space {about.space}, not {known.space}: delete it")
        return about

    @property
    def waiting(self) -> bool:
        """Whether the file has to be written anew."""
        return bool(self._removed or self._files())

    def put(self, rows: Rows, about: About) -> None:
        """Keep rows as one more part, which is there as a whole or not at all."""
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            with replacing(self.folder / f"{len(self._files()):08}.parquet") as temporary:
                pq.write_table(table_of(rows, about), temporary)
        self._removed.difference_update(rows.paths)

    def remove(self, paths: Sequence[str]) -> None:
        """Leave rows out when the file is written anew."""
        self._removed.update(paths)

    def stamps(self, whole: Sequence[Source]) -> dict[str, Stamp]:
        """The stamp of each image of the file and the parts, by path."""
        found: dict[str, Stamp] = {}
        for source in [*whole, *self._sources()]:
            for batch in source(("path", "bytes", "changed_ns")):
                found.update(stamps_of(batch))
        return found

    def merged(self, whole: Sequence[Source], about: About) -> Iterator[RecordBatch]:
        """The rows that the new file is to have, each once, a few thousand at a time."""
        sources = [*whole, *self._sources()]
        last: dict[str, int] = {}
        for number, source in enumerate(sources):
            for batch in source(("path",)):
                last.update(dict.fromkeys(batch.column("path").to_pylist(), number))
        schema = schema_of(about)
        for number, source in enumerate(sources):
            for batch in source(schema.names):
                paths = batch.column("path").to_pylist()
                kept = pa.array([last[path] == number and path not in self._removed for path in paths], pa.bool_())
                yield batch.filter(kept).replace_schema_metadata(schema.metadata)

    def done(self) -> None:
        """Forget all parts: the file has their rows.

        A stop before this leaves parts whose rows are in the file already: the next run finds nothing new in them.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self._removed.clear()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet")) if self.folder.is_dir() else []

    def _sources(self) -> list[Source]:
        return [source_of(file) for file in self._files()]


class PartedStore(ABC):
    """What collections of one file share: rows that come or go wait as parts until `finish` writes the file anew.

    Args:
        path: the collection's file.
    """

    def __init__(self, path: Path) -> None:
        self._parts = Parts(path)
        self.about: About | None = self._parts.about

    def begin(self, about: About) -> None:
        self.about = about

    def stamps(self) -> Mapping[str, Stamp]:
        return self._parts.stamps(self._whole())

    def put(self, rows: Rows, known: Collection[str]) -> None:  # noqa: ARG002 (the later part counts)
        assert self.about is not None
        self._parts.put(rows, self.about)

    def remove(self, paths: Sequence[str]) -> None:
        self._parts.remove(paths)

    @abstractmethod
    def _whole(self) -> Sequence[Source]:
        """The rows of the file, where there is one."""


def source_of(file: Path) -> Source:
    """The rows of a Parquet file."""

    def batches(columns: Sequence[str]) -> Iterator[RecordBatch]:
        with reading(file), pq.ParquetFile(file) as opened:
            yield from opened.iter_batches(ROWS_AT_ONCE, columns=list(columns))

    return batches


def about_of(file: Path) -> About:
    """What a Parquet file of vectors says of itself.

    Raises:
        InvalidData: it is no collection, or damaged.
    """
    with reading(file):
        schema = pq.read_schema(file)
    about = read_about(schema.metadata, str(file))
    check_schema(schema, about, str(file))
    return about


def settle(file: Path) -> None:
    """Have a file's bytes on the disk before it is renamed over another."""
    with file.open("rb") as written:
        os.fsync(written.fileno())
