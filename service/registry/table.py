"""What one process knows of a registry: every entry of both kinds, each as of the change it was read at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock

from service.registry.base import KINDS, Entry, Kind

Row = tuple[Kind, str, Entry | None]
Text = bytes
Parse = Callable[[Kind, str, Text], Entry | None]


class Table:
    """Entries by name; `get` and `names` may be called by any thread while others write.

    `heard` is called after every change, by whoever made it.

    Every row carries the id of a change at or after which it was read, and never goes back to an earlier one: a
    process's own writes and the follower's come in any order. A snapshot replaces everything but what was put since its
    reading began and is later than it. Its records stay texts until somebody asks: most names are never asked for.

    Args:
        parse: makes an entry of a record's text; None of one that is damaged.
    """

    def __init__(self, parse: Parse) -> None:
        self._parse = parse
        self.loaded = False
        self.heard: Callable[[], object] = lambda: None
        self._lock = Lock()
        self._rows: dict[Kind, dict[str, Entry | Text]] = {kind: {} for kind in KINDS}
        self._order: dict[Kind, list[str] | None] = dict.fromkeys(KINDS)
        self._at = 0
        self._changed: dict[tuple[Kind, str], int] = {}
        self._since: list[tuple[int, Row]] | None = None

    def get(self, kind: Kind, name: str) -> Entry | None:
        rows = self._rows[kind]
        found = rows.get(name)
        if not isinstance(found, bytes):
            return found
        entry = self._parse(kind, name, found)
        with self._lock:
            if entry is not None and rows.get(name) is found:
                rows[name] = entry
        return entry

    def names(self, kind: Kind) -> list[str]:
        """All names in order. The caller must not change the list."""
        with self._lock:
            order = self._order[kind]
            if order is None:
                order = self._order[kind] = sorted(self._rows[kind])
        return order

    def put(self, rows: Iterable[Row], at: int) -> None:
        """Set rows that were read at the change `at`; None is a name that is gone. A row of a later change stays."""
        with self._lock:
            for row in rows:
                if self._since is not None:
                    self._since.append((at, row))
                self._set(self._rows, row, at)
        self.heard()

    def begin(self) -> None:
        """Begin a snapshot: from now on remember what is put."""
        with self._lock:
            self._since = []

    def replace(self, rows: Iterable[tuple[Kind, str, Text]], at: int) -> None:
        """Replace the table by the snapshot that was read at the change `at`."""
        with self._lock:
            self._at = at
            self._changed.clear()
            self._order = dict.fromkeys(KINDS)
            fresh: dict[Kind, dict[str, Entry | Text]] = {kind: {} for kind in KINDS}
            for kind, name, text in rows:
                fresh[kind][name] = text
            for put_at, row in self._since or ():
                if put_at > at:
                    self._set(fresh, row, put_at)
            self._since = None
            self._rows = fresh
            self.loaded = True
        self.heard()

    def _set(self, rows: dict[Kind, dict[str, Entry | Text]], row: Row, at: int) -> None:
        kind, name, entry = row
        if at < self._changed.get((kind, name), self._at):
            return
        self._changed[kind, name] = at
        if entry is None:
            rows[kind].pop(name, None)
            self._order[kind] = None
        else:
            if name not in rows[kind]:
                self._order[kind] = None
            rows[kind][name] = entry
