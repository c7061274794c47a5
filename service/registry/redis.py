"""A registry in Redis that several servers share; keys and scripts are in scripts.py.

Every process keeps a table of all names, which one thread keeps in step (follower.py). Readers ask the table alone, so
they are never slower than a dictionary and go on while Redis is away.
"""

from __future__ import annotations

import bisect
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from service.registry import scripts, upkeep
from service.registry.base import (
    GRACE_S,
    KINDS,
    Entry,
    Finding,
    Hold,
    Kind,
    Published,
    Resolved,
    StillNeeded,
    Version,
    absent,
    check_alias,
    check_digest,
    check_needs,
    parse_reference,
    pick,
)
from service.registry.connect import ERRORS, FULL, Client, Moved, connector, unavailable
from service.registry.follower import NAMES_A_PAGE, Follower
from service.registry.lines import Lines
from service.registry.record import FORMAT, Record, facts_of, parse_record
from service.registry.watch import Health, ReadOnly, Watch
from smn_core.errors import Conflict, MissingMasks, NotFound, PreconditionFailed, Unavailable
from smn_core.names import check_name
from smn_core.tensorfile import digest_of

LOOK_TIMEOUT_S = 1.0
EXPIRES_S = 30
"""How long a server that is silent is still reckoned with."""


class RedisRegistry:
    """See `Registry`. If Redis is away at the start, it is waited for; until the first snapshot, reading raises."""

    def __init__(self, url: str, fingerprint: str) -> None:
        self._connect = connector(url)
        self._prefix = f"smn:{{{fingerprint[:16]}}}:"
        self._lines = Lines(self._connect)
        self._watch: Watch | None = None
        self._looking: Client = None
        self._refused_bytes = 0
        self._room_then: int | None = None
        self._member = f"{FORMAT}:{secrets.token_hex(8)}"
        self._follower = Follower(self._connect, self._prefix)
        self._table = self._follower.table

    def resolve(self, kind: Kind, reference: str) -> Resolved:
        """Answers from the table; asks Redis nothing."""
        name, pin = parse_reference(reference)
        version = pick(kind, self.entry(kind, name), pin)
        return Resolved(name, version.version, version.digest, version.vectors)

    def entry(self, kind: Kind, name: str) -> Entry:
        check_name(name)
        self._follower.require_table()
        entry = self._table.get(kind, name)
        if entry is None:
            if wrong := self._follower.damaged.get((kind, name)):
                raise Unavailable(f"the record of {name} is damaged: {wrong}; smn gc --check mends it")
            raise absent(kind, name, self._table.names(kind))
        return entry

    def names(self, kind: Kind, limit: int = 100, after: str = "") -> Sequence[Entry]:
        self._follower.require_table()
        names = self._table.names(kind)
        first = bisect.bisect_right(names, after)
        entries = (self._table.get(kind, name) for name in names[first : first + max(limit, 0)])
        return [entry for entry in entries if entry]

    def blob(self, digest: str) -> bytes:
        check_digest(digest)
        self._refuse_to_hang()
        data: bytes | None = self._lines.call(lambda client: client.get(f"{self._prefix}blob:{digest}"))
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
        holds: Sequence[Hold] = (),
        needs: Sequence[str] = (),
        vectors: str | None = None,
        parent: str | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> Published:
        check_name(name)
        needs = check_needs([*needs, *(hold.digest for hold in holds)])
        digest = digest_of(data)
        told = json.dumps(facts_of(vectors, parent, tuple(holds)))
        guards = (digest, len(data), " ".join(needs), "" if if_match is None else if_match or "-", int(if_absent))

        def publish(dry: int, blob: bytes | str = "") -> tuple[bytes, list[bytes]]:
            above = self._follower.highest.get((kind, name), 0)
            word, *answer = self._run(
                scripts.PUBLISH, dry, kind, name, *guards, told, above, blob, extra=f"blob:{digest}"
            )
            return word, answer

        # Dry first: a refused upload leaves no blob. The real one decides again.
        word, answer = publish(1)
        if word == b"allowed":
            try:
                self._run(scripts.STORE, digest, data, extra=f"blob:{digest}")
            except ReadOnly as error:
                self._refused_bytes = len(data) if FULL in str(error) else 0
                raise
            self._refused_bytes, self._room_then = 0, None
            word, answer = publish(0)
        if word == b"collected":  # since it was stored: with no grace period that can happen, and happen again
            word, answer = publish(0, data)
        if word not in {b"new", b"same"}:
            _refuse_publish(kind, name, word, [text.decode() for text in answer], if_match)
        return Published(self._put(kind, name, answer).current, created=word == b"new")

    def set_current(self, kind: Kind, name: str, version: int) -> Version:
        check_name(name)
        word, *answer = self._run(scripts.SET_CURRENT, kind, name, version)
        if word == b"absent":
            raise absent(kind, name, self._table.names(kind))
        return pick(kind, self._put(kind, name, answer), version)

    def set_alias(self, kind: Kind, name: str, alias: str, version: int) -> bool:
        check_name(name)
        check_alias(alias)
        word, *answer = self._run(scripts.ALIAS, kind, name, alias, version)
        if word == b"absent":
            raise absent(kind, name, self._table.names(kind))
        if word == b"old":
            raise Conflict(f"alias {alias}: a server that shares the registry is too old to read aliases")
        pick(kind, self._put(kind, name, answer), version)
        return word == b"new"

    def delete_alias(self, kind: Kind, name: str, alias: str) -> None:
        check_name(name)
        check_alias(alias)
        word, *answer = self._run(scripts.ALIAS, kind, name, alias, "")
        if word == b"absent":
            raise absent(kind, name, self._table.names(kind))
        entry = self._put(kind, name, answer)
        if word == b"unknown":
            pick(kind, replace(entry, aliases={k: v for k, v in entry.aliases.items() if k != alias}), alias)

    def set_notes(self, kind: Kind, name: str, version: int, notes: str | None) -> None:
        check_name(name)
        word, *answer = self._run(scripts.NOTES, kind, name, version, notes or "")
        if word == b"absent":
            raise absent(kind, name, self._table.names(kind))
        if word == b"old":
            raise Conflict("a server that shares the registry is too old to read notes")
        pick(kind, self._put(kind, name, answer), version)

    def delete(self, kind: Kind, name: str, version: int | None = None) -> None:
        check_name(name)
        word, *answer = self._run(scripts.DELETE, kind, name, "" if version is None else version)
        if word == b"absent":
            raise absent(kind, name, self._table.names(kind))
        if word == b"current":
            raise Conflict(f"{name}@{version} is the current version: make another one current, or delete {name}")
        if word == b"aliased":
            raise Conflict(f"{name}@{version} is {name}@{answer[0].decode()}: move the alias, or delete it, first")
        if word == b"needed":
            raise StillNeeded(name, [text.decode() for text in answer])
        if word == b"unversioned":
            pick(kind, self._put(kind, name, answer), version)
        self._follower.put([(kind, name, answer[1])], int(answer[0]))

    def collect(self, grace_s: float = GRACE_S) -> Sequence[str]:
        found = [digest.decode() for digest in self._run(upkeep.COLLECTABLE, grace_s)]
        return [
            digest
            for digest in sorted(found)
            if self._run(upkeep.COLLECT, digest, grace_s, extra=f"blob:{digest}")[0] == b"gone"
        ]

    def examine(self, *, mend: bool) -> Sequence[Finding]:
        self._follower.require_table()
        held = {version.digest for kind in KINDS for entry in self.names(kind, 2**62) for version in entry.versions}
        found = [
            Finding(
                f"{kind[:-1]} {name}", f"its record is damaged: {wrong}; it is put aside, upload its files again", mend
            )
            for (kind, name), wrong in sorted(self._follower.damaged.items())
        ]
        if found and mend:
            self._run(upkeep.RECOUNT, extra="damaged")
        for digest in sorted(held):
            try:
                self.blob(digest)
            except NotFound:
                found.append(Finding(digest, "it is missing: upload the file again", mended=False))
            except Unavailable as error:
                if "damaged" not in str(error):
                    raise
                found.append(Finding(digest, "it is damaged: upload the file again", mended=False))
        return found

    def records(self, kind: Kind) -> Iterator[tuple[str, Record]]:
        found: dict[str, Record] = {}
        for name, text in self._pages(kind):
            try:
                found[name] = parse_record(text)
            except ValueError as error:
                raise Unavailable(f"the record of {name} is damaged: {error}; smn gc --check mends it") from error
        for key, last in self._pages("last"):  # what is not among the records has been deleted
            of, _, name = key.partition(":")
            if of == kind:
                found[name] = replace(found.get(name, Record()), last=int(last))
        yield from sorted(found.items())

    def _pages(self, key: str) -> Iterator[tuple[str, bytes]]:
        cursor: int | None = None
        while cursor != 0:
            page: dict[bytes, bytes]
            read = partial(self._hscan, key, cursor or 0)
            cursor, page = self._lines.call(read)
            for name, text in page.items():
                yield name.decode(), text

    def _hscan(self, key: str, cursor: int, client: Client) -> tuple[int, dict[bytes, bytes]]:
        found: tuple[int, dict[bytes, bytes]] = client.hscan(f"{self._prefix}{key}", cursor, count=NAMES_A_PAGE)
        return found

    def store(self, data: bytes) -> str:
        digest = digest_of(data)
        self._run(scripts.STORE, digest, data, extra=f"blob:{digest}")
        return digest

    def put_back(self, kind: Kind, name: str, record: Record) -> None:
        text = record.to_redis() if record.versions else ""
        self._run(upkeep.PUT_BACK, kind, name, text, record.last)

    def put_over(self, kind: Kind, name: str, before: Record, after: Record) -> None:
        told = (after.to_redis(), after.last, before.to_redis(), before.last)
        if self._run(upkeep.PUT_OVER, kind, name, *told)[0] == b"changed":
            raise Conflict(f"{kind[:-1]} {name} was changed meanwhile: try again")

    def listen(self, heard: Callable[[], object]) -> None:
        self._table.heard = heard

    def check(self) -> None:
        self._lines.call(lambda client: client.ping())
        self._follower.require_table()

    def watch(self, told: Callable[[Health], object]) -> None:
        self._watch = Watch(self._look, told)
        self._watch.start()

    def health(self) -> Health:
        return self._watch.health() if self._watch is not None else Health()

    def epoch(self) -> str:
        return self._follower.epoch

    def close(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._withdraw()
        self._lines.close()
        self._follower.close()

    def _look(self) -> None:
        """Write to Redis: that this server is there, on a connection of its own that is never waited for long."""
        try:
            self._announce()
        except Moved:  # perhaps only this connection is with a server that is a replica now
            self._hang_up()
            self._announce()
            self._moved()
        except Unavailable:
            self._hang_up()
            raise
        self._follower.require_current()

    def _announce(self) -> None:
        with unavailable():
            if self._looking is None:
                self._looking = self._connect(LOOK_TIMEOUT_S)
            scripts.run(self._looking, self._prefix, upkeep.ANNOUNCE, self._member, EXPIRES_S)
            if self._refused_bytes:
                self._look_for_room(self._looking)

    def _look_for_room(self, client: Client) -> None:
        """A small write may pass after a file was refused: the registry is full until it has room for that."""
        memory = client.info("memory")  # a cluster tells of each node: there it counts as shed
        if most := memory.get("maxmemory"):
            room = most - memory["used_memory"]
            self._room_then = room if self._room_then is None else self._room_then
            if room < self._room_then + self._refused_bytes:
                raise ReadOnly(f"the registry cannot be written: {FULL}")
        self._refused_bytes, self._room_then = 0, None

    def _hang_up(self) -> None:
        client, self._looking = self._looking, None
        if client is not None:
            with suppress(*ERRORS):  # a lost connection is as good as closed
                client.close()

    def _withdraw(self) -> None:
        """Leave the list of servers, if that can be done at once; else this one expires."""
        with suppress(*ERRORS):
            client = self._connect(LOOK_TIMEOUT_S)
            client.zrem(f"{self._prefix}servers", self._member)
            client.close()

    def _moved(self) -> None:
        """Another server is behind the address now: leave the old one."""
        self._lines.drop()
        self._follower.reconnect()

    def _refuse_to_hang(self) -> None:
        if self._follower.hangs:
            # Each command would wait out its timeout, and those who wait for it with it.
            raise Unavailable(f"the registry is away: {self._follower.trouble}")

    def _run(self, script: str, *arguments: object, extra: str | None = None) -> list[Any]:
        self._refuse_to_hang()
        return self._lines.call(
            lambda client: scripts.run(client, self._prefix, script, *arguments, extra=extra), self._moved
        )

    def _put(self, kind: Kind, name: str, answer: list[bytes]) -> Entry:
        """Put what a script answered (change, record) into the table: this process sees its own write at once."""
        self._follower.put([(kind, name, answer[1])], int(answer[0]))
        entry = self._follower.entry_of(kind, name, answer[1])
        if entry is None:
            raise Unavailable(f"the record of {name} is damaged; smn gc --check mends it")
        return entry


def _refuse_publish(kind: Kind, name: str, word: bytes, answer: list[str], if_match: str | None) -> NoReturn:
    if word == b"missing":
        missing = ", ".join(dict.fromkeys(answer))
        raise MissingMasks(f"{kind[:-1]} {name} needs masks that are not in the registry: {missing}")
    if word == b"exists":
        raise PreconditionFailed(f"{kind[:-1]} {name} exists, its current digest is {answer[0]}")
    found = f"its current digest is {answer[0]}" if answer[0] else "it does not exist"
    raise PreconditionFailed(f"{kind[:-1]} {name} is not at {if_match}: {found}")
