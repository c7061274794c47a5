"""The records of a registry in a folder: read when they have changed, written whole, listed in order of names."""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from service.registry import disk
from service.registry.base import NEIGHBOURS, Entry, Kind
from service.registry.record import FORMAT, Record, parse_record
from smn_core.errors import Unavailable


class RecordFiles:
    """`<folder>/<kind>/<name>.json`, and a copy of each under `copies`.

    `highest` has the largest version number that this process knows to have been given out, by name.
    """

    def __init__(self, folder: Path, epoch: str) -> None:
        self._folder, self._epoch = folder, epoch
        self.highest: dict[tuple[Kind, str], int] = {}
        self._cache: dict[tuple[Kind, str], tuple[disk.Stamp, Record]] = {}
        self._listed: dict[Kind, tuple[int, list[str]]] = {}

    def check(self) -> None:
        """Raise Unavailable unless the folder is there."""
        try:
            os.listdir(self._folder)  # noqa: PTH208 - a listing that fails when it is made, not when it is read
        except OSError as error:
            raise disk.away(error) from error

    def forget(self) -> None:
        """Read every record again."""
        self._cache.clear()

    def next_number(self, kind: Kind, name: str, record: Record) -> int:
        """A version number that was never given out."""
        return max(record.last, self.highest.get((kind, name), 0)) + 1

    def read(self, kind: Kind, name: str) -> Record:
        """The record of a name; an empty one if the name was never used."""
        path = self._folder / kind / f"{name}.json"
        try:
            cached = self._cache.get((kind, name))
            if cached and cached[0] == disk.stamp_of(path.stat()):
                return cached[1]
            with path.open("rb") as file:
                stamp = disk.stamp_of(os.fstat(file.fileno()))
                record = parse_record(file.read())
        except FileNotFoundError:
            self.check()
            return Record(epoch=self._epoch)
        except OSError as error:
            raise disk.away(error) from error
        except ValueError as error:
            raise Unavailable(f"the record of {name} is damaged: {error}; smn gc --check mends it") from error
        self._cache[kind, name] = stamp, record
        self.highest[kind, name] = max(record.last, self.highest.get((kind, name), 0))
        return record

    def sound(self, kind: Kind, name: str) -> Record | None:
        """The record of a name; None of one that is damaged, which costs that name alone."""
        self.check()
        try:
            return self.read(kind, name)
        except Unavailable:
            return None

    def names(self, kind: Kind) -> list[str]:
        """All names in order, deleted ones among them. The caller must not change the list."""
        folder = self._folder / kind
        try:
            changed = folder.stat().st_mtime_ns
            known = self._listed.get(kind)
            # A name that came within the clock's tick of the listing may be missing in it: list again until it is old.
            if known is not None and known[0] == changed and time.time_ns() - changed > 2_000_000_000:
                return known[1]
            files = os.listdir(folder)  # noqa: PTH208 - as in check
        except OSError as error:
            raise disk.away(error) from error
        found = sorted(f.removesuffix(".json") for f in files if f.endswith(".json") and not f.startswith("."))
        self._listed[kind] = changed, found
        return found

    def neighbours(self, kind: Kind, name: str) -> list[str]:
        """Names that are there, about where `name` would be: as many as near misses are looked for among."""
        names = self.names(kind)
        place = bisect.bisect_left(names, name)
        around = names[max(0, place - NEIGHBOURS) : place + NEIGHBOURS]
        return [one for one in around if (record := self.sound(kind, one)) and record.current]

    def entries(self, kind: Kind, after: str = "") -> Iterator[Entry]:
        """The entries of all names after `after`, in order, but for those whose record is damaged."""
        names = self.names(kind)
        for name in names[bisect.bisect_right(names, after) :]:
            record = self.sound(kind, name)
            if record is not None and (entry := record.entry(name)):
                yield entry

    def replace(self, kind: Kind, name: str, record: Record, oldest: int) -> None:
        """Write a record, and its copy, in a format that servers which read `oldest` at most can read."""
        path = self._folder / kind / f"{name}.json"
        before = path.stat().st_mtime_ns if path.exists() else 0
        written = min(FORMAT, max(record.needs_format, oldest))
        record = replace(record, format=written, epoch=self._epoch)
        disk.write(path, record.to_json(), max(time.time_ns(), before + 1))
        self.highest[kind, name] = max(record.last, self.highest.get((kind, name), 0))
        disk.write(self._folder / "copies" / kind / path.name, record.to_json())
