"""Keeps a table of all names in step with Redis: a snapshot in pages, then the changes of the stream, on one thread."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from time import monotonic

from redis import exceptions

from service.registry import scripts, upkeep
from service.registry.base import KINDS, Entry, Kind
from service.registry.connect import ERRORS, Client, disconnect, unavailable
from service.registry.record import parse_record
from service.registry.table import Table
from service.registry.watch import ReadOnly
from smn_core.errors import Unavailable

BLOCK_MS = 1000
FOLLOW_TIMEOUT_S = 3.0
FIRST_SNAPSHOT_S = 2.0
LONGEST_BACKOFF_S = 1.0
CHANGES_A_READ = 500
NAMES_A_PAGE = 1000
"""Redis sends so many records at once, so that no answer takes long however many there are."""
STALE_S = 3.0
"""A lost connection is news only when it has not come back by then."""


class Follower:
    """Reads Redis until it is closed. `epoch` and `highest` are what it has seen of the registry.

    Args:
        connect: makes a client; its argument is the socket timeout.
    """

    def __init__(self, connect: Callable[[float], Client], prefix: str) -> None:
        self.table = Table(self.entry_of)
        self.epoch = ""
        self.highest: dict[tuple[Kind, str], int] = {}
        self.damaged: dict[tuple[Kind, str], str] = {}
        self.trouble: str | None = "it has not answered yet"
        self.hangs = False
        self._connect, self._prefix = connect, prefix
        self._lost = monotonic()
        self._tried, self._stopping = Event(), Event()
        self._client: Client = None
        self._thread = Thread(target=self._follow, name="smn-registry-follower", daemon=True)
        self._thread.start()
        self._tried.wait(FIRST_SNAPSHOT_S)

    def require_table(self) -> None:
        """Raise Unavailable until the first snapshot is whole."""
        if not self.table.loaded:
            raise Unavailable(f"the registry is away and has not been read yet: {self.trouble or 'it is being read'}")

    def require_current(self) -> None:
        """Raise Unavailable where changes have not been followed for a while."""
        self.require_table()
        if self.trouble is not None and monotonic() - self._lost > STALE_S:
            raise Unavailable(f"the registry is away: {self.trouble}")

    def entry_of(self, kind: Kind, name: str, text: bytes | None) -> Entry | None:
        """A record as an entry; None where there is none, or one that cannot be read: then it is among `damaged`."""
        self.damaged.pop((kind, name), None)
        if not text:
            return None
        try:
            record = parse_record(text)
        except ValueError as error:
            self.damaged[kind, name] = str(error)
            return None
        self.highest[kind, name] = max(record.last, self.highest.get((kind, name), 0))
        return record.entry(name)

    def reconnect(self) -> None:
        """Follow whoever answers at the address now."""
        client = self._client
        if client is not None:
            disconnect(client)

    def close(self) -> None:
        """Stop."""
        self._stopping.set()
        # Again and again: a disconnection just before the next read makes it connect once more.
        until = monotonic() + FOLLOW_TIMEOUT_S
        while self._thread.is_alive() and monotonic() < until:
            self.reconnect()
            self._thread.join(0.02)

    def _follow(self) -> None:
        backoff_s = LONGEST_BACKOFF_S / 16
        while not self._stopping.is_set():
            try:
                with unavailable():
                    self._client = self._connect(FOLLOW_TIMEOUT_S)
                    position = self._snapshot()
                    self.trouble, self.hangs = None, False
                    self._tried.set()
                    backoff_s = LONGEST_BACKOFF_S / 16
                    while not self._stopping.is_set():
                        position = self._step(position)
            except Exception as error:
                # Every exception, not Unavailable alone: if this thread died, the table would stay as it is for ever.
                if self.trouble is None:
                    self._lost = monotonic()
                self.trouble = str(error).removeprefix("the registry is away: ")
                self.hangs = isinstance(error.__cause__, TimeoutError | exceptions.TimeoutError)
                self._tried.set()
                self._stopping.wait(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
            finally:
                self._forget()

    def _snapshot(self) -> int:
        """Read everything, page by page. Returns the id of a change: those after it are still to be followed.

        A record that changes meanwhile may be read as it was before or after: its change comes after the id.
        """
        self.table.begin()
        epoch, at = self._begin()
        rows = [(kind, name, text) for kind in KINDS for name, text in self._pages(kind)]
        for key, last in self._pages("last"):
            of, _, name = key.partition(":")
            if kind := next((one for one in KINDS if one == of), None):
                self.highest[kind, name] = max(int(last), self.highest.get((kind, name), 0))
        self.damaged.clear()
        if self.epoch and epoch != self.epoch:
            self._remember()
        self.epoch = epoch
        self.table.replace(rows, at)
        return at

    def _pages(self, key: str) -> Iterator[tuple[str, bytes]]:
        cursor: int | None = None
        while cursor != 0 and not self._stopping.is_set():
            cursor, page = self._client.hscan(f"{self._prefix}{key}", cursor or 0, count=NAMES_A_PAGE)
            for name, text in page.items():
                yield name.decode(), text

    def _begin(self) -> tuple[str, int]:
        try:
            with unavailable():
                epoch, at = scripts.run(self._client, self._prefix, upkeep.BEGIN, secrets.token_hex(8))
        except ReadOnly:  # a registry without an epoch that takes none now
            epoch, at = b"", self._client.get(f"{self._prefix}changed") or 0
        return epoch.decode(), int(at)

    def _remember(self) -> None:
        """The registry has begun anew: tell it which numbers it had given out, so that it gives out none again."""
        numbers = [text for (kind, name), n in self.highest.items() for text in (f"{kind}:{name}", n)]
        try:
            with unavailable():
                for start in range(0, len(numbers), 2 * NAMES_A_PAGE):
                    page = numbers[start : start + 2 * NAMES_A_PAGE]
                    scripts.run(self._client, self._prefix, upkeep.REMEMBER, *page)
        except ReadOnly:
            return  # an upload of this process brings its number along

    def _step(self, position: int) -> int:
        """Wait for changes after `position` and put them in the table; returns the new position."""
        key = f"{self._prefix}changes"
        streams = self._client.xread({key: f"{position}-0"}, count=CHANGES_A_READ, block=BLOCK_MS)
        if not streams:
            now = int(self._client.get(f"{self._prefix}changed") or 0)
            return position if now == position else self._snapshot()
        names: dict[tuple[Kind, str], None] = {}
        for identity, change in streams[0][1]:
            if int(change[b"after"]) != position:
                return self._snapshot()
            position = int(identity.partition(b"-")[0])
            names[change[b"kind"].decode(), change[b"name"].decode()] = None
        arguments = [text for pair in names for text in pair]
        at, *records = scripts.run(self._client, self._prefix, scripts.READ, *arguments)
        self.put([(kind, name, text) for (kind, name), text in zip(names, records, strict=True)], int(at))
        return position

    def put(self, records: Sequence[tuple[Kind, str, bytes | None]], at: int) -> None:
        """Put records that were read at the change `at` into the table."""
        self.table.put([(kind, name, self.entry_of(kind, name, text)) for kind, name, text in records], at)

    def _forget(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except ERRORS:
                return  # a lost connection is as good as closed
