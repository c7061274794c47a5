"""A registry in Redis that several servers share; keys and scripts are in scripts.py.

Every process keeps a table of all names: a snapshot, then the changes of the stream, which one thread follows. Readers
ask the table alone, so they are never slower than a dictionary and go on while Redis is away. After anything that could
have cost a change (a lost connection, a gap in the stream, a FLUSHALL) the thread takes a whole snapshot again.
"""

from __future__ import annotations

import bisect
import json
import logging
from collections.abc import Callable, Sequence
from hashlib import sha1
from threading import Event, Lock, Thread
from time import gmtime, monotonic, strftime
from typing import Any, NoReturn

from redis import exceptions

from service.registry import scripts
from service.registry.base import (
    GRACE_S,
    Entry,
    Kind,
    Published,
    Resolved,
    Version,
    absent,
    check_digest,
    check_needs,
    parse_reference,
    pick,
)
from service.registry.connect import ERRORS, Client, connector, disconnect, unavailable, where
from service.registry.table import Table
from smn_core.errors import Conflict, MissingMasks, NotFound, PreconditionFailed, Unavailable
from smn_core.names import check_name
from smn_core.tensorfile import digest_of

KEYS = ("masks", "cascades", "last", "refs", "blobs", "changed", "changes")
BLOCK_MS = 1000
COMMAND_TIMEOUT_S = 10.0
"""Enough for one blob to be sent or received."""
FOLLOW_TIMEOUT_S = 3.0
FIRST_SNAPSHOT_S = 2.0
LONGEST_BACKOFF_S = 1.0
CHANGES_A_READ = 500

log = logging.getLogger("smn.registry")


class RedisRegistry:
    """See `Registry`. If Redis is away at the start, it is waited for; until the first snapshot, reading raises."""

    def __init__(self, url: str, fingerprint: str) -> None:
        self._connect = connector(url)
        self._where = where(url)
        self._prefix = f"smn:{{{fingerprint[:16]}}}:"
        self._clients: dict[float, Client] = {}
        self._clients_lock = Lock()
        self._table = Table()
        self._trouble = "it has not answered yet"
        self._hangs = False
        self._tried, self._stopping = Event(), Event()
        self._following: Client = None
        self._thread = Thread(target=self._follow, name="smn-registry-follower", daemon=True)
        self._thread.start()
        self._tried.wait(FIRST_SNAPSHOT_S)

    def resolve(self, kind: Kind, reference: str) -> Resolved:
        """Answers from the table; asks Redis nothing."""
        name, pin = parse_reference(reference)
        version = pick(kind, self.entry(kind, name), pin)
        return Resolved(name, version.version, version.digest)

    def entry(self, kind: Kind, name: str) -> Entry:
        check_name(name)
        self._require_table()
        entry = self._table.get(kind, name)
        if entry is None:
            raise absent(kind, name, self._table.names(kind))
        return entry

    def names(self, kind: Kind, limit: int = 100, after: str = "") -> Sequence[Entry]:
        self._require_table()
        names = self._table.names(kind)
        first = bisect.bisect_right(names, after)
        entries = (self._table.get(kind, name) for name in names[first : first + max(limit, 0)])
        return [entry for entry in entries if entry]

    def blob(self, digest: str) -> bytes:
        check_digest(digest)
        with unavailable(self._where):
            data: bytes | None = self._client().get(f"{self._prefix}blob:{digest}")
        if data is None:
            raise NotFound(f"the registry has no {digest}")
        if digest_of(data) != digest:
            raise Unavailable(f"{digest} is damaged in the registry: upload the file again")
        return data

    def publish(
        self,
        kind: Kind,
        name: str,
        data: bytes,
        *,
        needs: Sequence[str] = (),
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> Published:
        check_name(name)
        needs = check_needs(needs)
        digest = digest_of(data)
        guards = (digest, len(data), " ".join(needs), "" if if_match is None else if_match or "-", int(if_absent))
        # Dry first: a refused upload leaves no blob. The real one decides again.
        word, *answer = self._run(scripts.PUBLISH, 1, kind, name, *guards, "", digest=digest)
        if word == b"allowed":
            self._run(scripts.STORE, digest, data, digest=digest)
            word, *answer = self._run(scripts.PUBLISH, 0, kind, name, *guards, "", digest=digest)
        if word == b"collected":  # since it was stored: with no grace period that can happen, and happen again
            word, *answer = self._run(scripts.PUBLISH, 0, kind, name, *guards, data, digest=digest)
        if word not in {b"new", b"same"}:
            _refuse_publish(kind, name, word, [text.decode() for text in answer], if_match)
        return Published(self._put(kind, name, answer).current, created=word == b"new")

    def set_current(self, kind: Kind, name: str, version: int) -> Version:
        check_name(name)
        word, *answer = self._run(scripts.SET_CURRENT, kind, name, version)
        if word == b"absent":
            raise absent(kind, name, self._table.names(kind))
        return pick(kind, self._put(kind, name, answer), version)

    def delete(self, kind: Kind, name: str, version: int | None = None) -> None:
        check_name(name)
        word, *answer = self._run(scripts.DELETE, kind, name, "" if version is None else version)
        if word == b"absent":
            raise absent(kind, name, self._table.names(kind))
        if word == b"current":
            raise Conflict(f"{name}@{version} is the current version: make another one current, or delete {name}")
        if word == b"needed":
            users = ", ".join(sorted(text.decode() for text in answer))
            raise Conflict(f"mask {name} is needed by: {users}; delete the cascade first")
        if word == b"unversioned":
            pick(kind, self._put(kind, name, answer), version)
        self._put_row(kind, name, answer)

    def collect(self, grace_s: float = GRACE_S) -> Sequence[str]:
        found = [digest.decode() for digest in self._run(scripts.COLLECTABLE, grace_s)]
        return [d for d in sorted(found) if self._run(scripts.COLLECT, d, grace_s, digest=d)[0] == b"gone"]

    def listen(self, heard: Callable[[], object]) -> None:
        self._table.heard = heard

    def check(self) -> None:
        with unavailable(self._where):
            self._client(FOLLOW_TIMEOUT_S).ping()
        self._require_table()

    def close(self) -> None:
        self._stopping.set()
        with self._clients_lock:
            clients = [*self._clients.values()]
            self._clients.clear()
        # Again and again: a disconnection just before the follower's next read makes it connect once more.
        until = monotonic() + FOLLOW_TIMEOUT_S
        while self._thread.is_alive() and monotonic() < until:
            following = self._following
            if following is not None:
                disconnect(following)
            self._thread.join(0.02)
        for client in clients:
            client.close()

    def _client(self, timeout_s: float = COMMAND_TIMEOUT_S) -> Client:
        with self._clients_lock:
            if self._stopping.is_set():
                raise Unavailable("the registry is closed")
            if self._hangs and timeout_s == COMMAND_TIMEOUT_S:
                # Each command would wait out its timeout, and those who wait for it with it.
                raise Unavailable(f"the registry at {self._where} is away: {self._trouble}")
            if timeout_s not in self._clients:
                self._clients[timeout_s] = self._connect(timeout_s)  # a cluster connects here, the others do not
            return self._clients[timeout_s]

    def _run(self, script: str, *arguments: object, digest: str | None = None, client: Client = None) -> list[Any]:
        keys = [self._prefix + key for key in (*KEYS, *([f"blob:{digest}"] if digest else []))]
        with unavailable(self._where):
            client = client or self._client()
            try:
                return client.evalsha(sha1(script.encode()).hexdigest(), len(keys), *keys, *arguments)
            except exceptions.NoScriptError:
                return client.eval(script, len(keys), *keys, *arguments)

    def _put(self, kind: Kind, name: str, answer: list[bytes]) -> Entry:
        """Put what a script answered (change, record) into the table: this process sees its own write at once."""
        entry = self._put_row(kind, name, answer)
        assert entry is not None
        return entry

    def _put_row(self, kind: Kind, name: str, answer: list[bytes]) -> Entry | None:
        entry = _entry(name, answer[1])
        self._table.put([(kind, name, entry)], int(answer[0]))
        return entry

    def _require_table(self) -> None:
        if not self._table.loaded:
            raise Unavailable(f"the registry at {self._where} is away and has not been read yet: {self._trouble}")

    # The follower's thread.

    def _follow(self) -> None:
        backoff_s = LONGEST_BACKOFF_S / 16
        while not self._stopping.is_set():
            try:
                with unavailable(self._where):
                    self._following = self._connect(FOLLOW_TIMEOUT_S)
                    position = self._snapshot()
                    self._tried.set()
                    self._hangs = False
                    backoff_s = LONGEST_BACKOFF_S / 16
                    while not self._stopping.is_set():
                        position = self._step(position)
            except Exception as error:
                # Every exception, not Unavailable alone: if this thread died, the table would stay as it is for ever.
                if self._stopping.is_set():
                    break
                self._trouble = str(error).removeprefix(f"the registry at {self._where} is away: ")
                self._hangs = isinstance(error.__cause__, TimeoutError | exceptions.TimeoutError)
                self._tried.set()
                log.warning("following the registry failed, again in %.2f s: %s", backoff_s, error)
                self._stopping.wait(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
            finally:
                self._forget()

    def _snapshot(self) -> int:
        """Read everything; returns the id of the last change in it."""
        self._table.begin()
        at, masks, cascades = self._run(scripts.SNAPSHOT, client=self._following)
        kinds: tuple[tuple[Kind, Sequence[bytes]], ...] = (("masks", masks), ("cascades", cascades))
        rows = [
            (kind, entry)
            for kind, flat in kinds
            for name, text in zip(flat[::2], flat[1::2], strict=True)
            if (entry := _entry(name.decode(), text))
        ]
        self._table.replace(rows, int(at))
        return int(at)

    def _step(self, position: int) -> int:
        """Wait for changes after `position` and put them in the table; returns the new position."""
        key = f"{self._prefix}changes"
        streams = self._following.xread({key: f"{position}-0"}, count=CHANGES_A_READ, block=BLOCK_MS)
        if not streams:
            now = int(self._following.get(f"{self._prefix}changed") or 0)
            return position if now == position else self._snapshot()
        names: dict[tuple[Kind, str], None] = {}
        for identity, change in streams[0][1]:
            if int(change[b"after"]) != position:
                return self._snapshot()
            position = int(identity.partition(b"-")[0])
            names[change[b"kind"].decode(), change[b"name"].decode()] = None
        arguments = [text for pair in names for text in pair]
        at, *records = self._run(scripts.READ, *arguments, client=self._following)
        rows = [(kind, name, _entry(name, text)) for (kind, name), text in zip(names, records, strict=True)]
        self._table.put(rows, int(at))
        return position

    def _forget(self) -> None:
        following, self._following = self._following, None
        if following is not None:
            try:
                following.close()
            except ERRORS as error:
                log.debug("closing a lost connection: %s", error)


def _entry(name: str, text: bytes | None) -> Entry | None:
    """A record of scripts.py as an entry; None where there is no record."""
    if not text:
        return None
    record = json.loads(text)
    versions = tuple(
        Version(v["version"], v["digest"], v["bytes"], strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(v["uploaded"])))
        for v in record["versions"]
    )
    return Entry(name, next(v for v in versions if v.version == record["current"]), versions)


def _refuse_publish(kind: Kind, name: str, word: bytes, answer: list[str], if_match: str | None) -> NoReturn:
    if word == b"missing":
        raise MissingMasks(f"{kind[:-1]} {name} needs masks that are not in the registry: {', '.join(answer)}")
    if word == b"exists":
        raise PreconditionFailed(f"{kind[:-1]} {name} exists, its current digest is {answer[0]}")
    found = f"its current digest is {answer[0]}" if answer[0] else "it does not exist"
    raise PreconditionFailed(f"{kind[:-1]} {name} is not at {if_match}: {found}")
