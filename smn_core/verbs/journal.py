"""Embeddings in the making, kept so that a stopped run goes on: what was embedded once is not embedded again.

A folder with `rows.f32`, the vectors as they came, `images.jsonl`, a line an image, and `space.json`. A line is written
after its vector, so whatever stops a run, at most the last line is torn; it and its vector are dropped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from numpy import ndarray

from smn_core.collection import Collection
from smn_core.errors import InvalidData, OtherSpace
from smn_core.files import write_bytes

ROWS, IMAGES, SPACE = "rows.f32", "images.jsonl", "space.json"
Stamp = tuple[int, int]
"""Bytes and time of the last change of a file: an image that was changed since is embedded again."""


@dataclass(frozen=True)
class Entry:
    """What came of an image: the row of its vector, or why it has none."""

    stamp: Stamp
    row: int | None
    reason: str = ""


class Journal:
    """The images of one output that are done. To be used in a `with` block.

    Args:
        folder: where it is kept; made if it is not there.

    Raises:
        InvalidData: the folder is there and is no journal.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.entries = folder, dict[str, Entry]()
        self.width: int | None = None
        self.facts: dict[str, Any] = {}
        self.collection = Collection()
        self._n_rows = 0
        self._rows: BinaryIO | None = None
        self._images: TextIO | None = None

    def __enter__(self) -> Journal:
        self.folder.mkdir(exist_ok=True)
        if any(self.folder.iterdir()):
            self._read()
        self._rows = (self.folder / ROWS).open("ab")
        self._images = (self.folder / IMAGES).open("a", encoding="ascii")
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._rows, self._images):
            if file is not None:
                file.close()

    @property
    def raw(self) -> Path:
        """The file of the vectors, float32 [n, width]."""
        return self.folder / ROWS

    def admit(self, space: str, width: int, facts: Mapping[str, Any]) -> None:
        """Say what is known of the vectors; the first time it is written down.

        Raises:
            OtherSpace: the rows so far are in another space.
        """
        if self.collection.space is not None and self.collection.space != space:
            raise OtherSpace(
                f"{self.folder} has {self._n_rows} vectors of the space {self.collection.space}, and now they come in "
                f"{space}: name the version that it began with, or delete {self.folder} to begin anew"
            )
        if self.width is None:
            self.width, self.facts = width, dict(facts)
            self.collection.admit(space)
            told = {"space": space, "width": width, "facts": self.facts}
            write_bytes(self.folder / SPACE, json.dumps(told).encode())

    def add(self, names: Sequence[str], stamps: Sequence[Stamp], vectors: Sequence[ndarray]) -> None:
        """Write vectors down, then that their images are done."""
        assert self._rows is not None and self._images is not None
        for vector in vectors:
            self._rows.write(np.ascontiguousarray(vector, "<f4").tobytes())
        self._rows.flush()
        for name, stamp in zip(names, stamps, strict=True):
            self._note(name, Entry(stamp, self._n_rows))
            self._n_rows += 1
        self._images.flush()

    def skip(self, name: str, stamp: Stamp, reason: str) -> None:
        """Write down that an image cannot be read."""
        assert self._images is not None
        self._note(name, Entry(stamp, None, reason))
        self._images.flush()

    def is_done(self, name: str, stamp: Stamp) -> bool:
        """Whether an image was embedded or skipped, and has not been changed since."""
        return name in self.entries and self.entries[name].stamp == stamp

    def remove(self) -> None:
        """Delete it: the output is written."""
        self.__exit__()
        shutil.rmtree(self.folder)

    def _note(self, name: str, entry: Entry) -> None:
        assert self._images is not None
        self.entries[name] = entry
        self._images.write(json.dumps([name, *entry.stamp, entry.row, entry.reason]) + "\n")

    def _read(self) -> None:
        """Take up what an earlier run left, and cut off what it did not finish."""
        if not (self.folder / IMAGES).is_file() or not (self.folder / ROWS).is_file():
            raise InvalidData(f"{self.folder} is there and is not of an embed that was stopped: move it away")
        try:
            if (self.folder / SPACE).is_file():
                told = json.loads((self.folder / SPACE).read_text())
                self.width, self.facts = int(told["width"]), dict(told["facts"])
                self.collection = Collection(space=told["space"])
            text = (self.folder / IMAGES).read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            for line in whole.splitlines():
                name, n_bytes, changed, row, reason = json.loads(line)
                self.entries[name] = Entry((n_bytes, changed), row, reason)
                self._n_rows += row is not None
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidData(f"{self.folder} is damaged: delete it to begin anew") from error
        n_bytes = 4 * (self.width or 0) * self._n_rows
        if (self.folder / ROWS).stat().st_size < n_bytes:
            raise InvalidData(f"{self.folder} is damaged: delete it to begin anew")
        for name, length in ((IMAGES, len(whole)), (ROWS, n_bytes)):
            with (self.folder / name).open("r+b") as file:
                file.truncate(length)
