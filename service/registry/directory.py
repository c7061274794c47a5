"""A registry in a folder, for one machine or a shared disk with `flock`.

    <root>/<first 16 hex of the fingerprint>/
        lock                      empty; who writes holds it
        epoch                     16 hex digits, made with the registry
        blobs/sha256/<64 hex>     immutable; its mtime is when it was last uploaded or lost its last version
        masks/<name>.json         a record (record.py)
        cascades/<name>.json      the same
        copies/<kind>/<name>.json a copy of each record, to mend it by
        servers/<random>          the record format that a running server reads, written every second
A blob is written under the shared lock, a name under the exclusive one; both as `.<random>.tmp`, flushed, then renamed,
so that readers need no lock. A deleted name stays as a tombstone without versions, which keeps its last number. Readers
notice a change by `stat`: two renames can fall into one tick of the file system's clock and reuse an inode, so writers
set the mtime themselves, always later than the last.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from service.registry import disk, mending
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
from service.registry.files import RecordFiles
from service.registry.record import Record
from service.registry.servers import Announced
from service.registry.watch import Health, Watch
from smn_core.errors import Conflict, InvalidArgument, MissingMasks, PreconditionFailed, Unavailable
from smn_core.names import check_name
from smn_core.tensorfile import digest_of


class DirectoryRegistry:
    """See `Registry`; `root` may hold the registries of several backbones."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        self._folder = Path(root) / fingerprint[:16]
        self._blobs = self._folder / "blobs" / "sha256"
        self._copies = self._folder / "copies"
        self._heard: Callable[[], object] = lambda: None
        self._watch: Watch | None = None
        self._announced = Announced(self._folder / "servers")
        try:
            for folder in self._folders():
                folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidArgument(f"the registry {root} is not a folder") from error
        except OSError as error:
            raise disk.away(error) from error
        self._epoch = self._begin()
        self._records = RecordFiles(self._folder, self._epoch)

    @staticmethod
    def is_at(root: Path, fingerprint: str) -> bool:
        """Whether a registry of this backbone has been made there."""
        return (root / fingerprint[:16] / "blobs").is_dir()

    def resolve(self, kind: Kind, reference: str) -> Resolved:
        """Costs one `stat` where nothing has changed."""
        name, pin = parse_reference(reference)
        version = pick(kind, self.entry(kind, name), pin)
        return Resolved(name, version.version, version.digest, version.vectors)

    def entry(self, kind: Kind, name: str) -> Entry:
        check_name(name)
        entry = self._records.read(kind, name).entry(name)
        if entry is None:
            raise absent(kind, name, self._records.neighbours(kind, name))
        return entry

    def names(self, kind: Kind, limit: int = 100, after: str = "") -> Sequence[Entry]:
        found: list[Entry] = []
        for entry in self._records.entries(kind, after):
            if len(found) >= limit:
                break
            found.append(entry)
        return found

    def blob(self, digest: str) -> bytes:
        check_digest(digest)
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError as error:
            self.check()
            raise absent("masks", digest, ()) from error
        except OSError as error:
            raise disk.away(error) from error
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
        # Again under the lock: here it saves writing the blob.
        self._guard(kind, name, holds, needs, if_match, if_absent)
        with self._locked(fcntl.LOCK_SH):
            disk.write(self._path(digest), data)
        with self._locked(fcntl.LOCK_EX):
            record = self._guard(kind, name, holds, needs, if_match, if_absent)
            if not self._path(digest).exists():  # a collection came between
                disk.write(self._path(digest), data)
            entry = record.entry(name)
            if entry and entry.current.digest == digest:
                return Published(entry.current, created=False)
            number = self._records.next_number(kind, name, record)
            uploaded = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            version = Version(number, digest, len(data), uploaded, vectors, parent, tuple(holds), needs)
            self._replace(
                kind, name, replace(record, last=number, current=number, versions=(*record.versions, version))
            )
        return Published(version, created=True)

    def set_current(self, kind: Kind, name: str, version: int) -> Version:
        with self._locked(fcntl.LOCK_EX):
            found = pick(kind, self.entry(kind, name), version)
            record = self._records.read(kind, name)
            if record.current != version:
                self._replace(kind, name, replace(record, current=version))
        return found

    def set_alias(self, kind: Kind, name: str, alias: str, version: int) -> bool:
        check_alias(alias)
        with self._locked(fcntl.LOCK_EX):
            if self._announced.oldest() < 2:
                raise Conflict(f"alias {alias}: a server that shares the registry is too old to read aliases")
            pick(kind, self.entry(kind, name), version)
            record = self._records.read(kind, name)
            known = record.aliases.get(alias)
            if known != version:
                self._replace(kind, name, replace(record, aliases={**record.aliases, alias: version}))
        return known is None

    def delete_alias(self, kind: Kind, name: str, alias: str) -> None:
        check_alias(alias)
        with self._locked(fcntl.LOCK_EX):
            pick(kind, self.entry(kind, name), alias)
            record = self._records.read(kind, name)
            kept = {known: version for known, version in record.aliases.items() if known != alias}
            self._replace(kind, name, replace(record, aliases=kept))

    def set_notes(self, kind: Kind, name: str, version: int, notes: str | None) -> None:
        with self._locked(fcntl.LOCK_EX):
            if self._announced.oldest() < 2:
                raise Conflict("a server that shares the registry is too old to read notes")
            pick(kind, self.entry(kind, name), version)
            record = self._records.read(kind, name)
            noted = tuple(replace(v, notes=notes) if v.version == version else v for v in record.versions)
            self._replace(kind, name, replace(record, versions=noted))

    def delete(self, kind: Kind, name: str, version: int | None = None) -> None:
        with self._locked(fcntl.LOCK_EX):
            entry, record = self.entry(kind, name), self._records.read(kind, name)
            if version is None:
                kept = Record(record.last, epoch=record.epoch)
            elif pick(kind, entry, version) == entry.current:
                raise Conflict(f"{name}@{version} is the current version: make another one current, or delete {name}")
            elif under := sorted(alias for alias, at in entry.aliases.items() if at == version):
                raise Conflict(f"{name}@{version} is {name}@{under[0]}: move the alias, or delete it, first")
            else:
                kept = replace(record, versions=tuple(v for v in record.versions if v.version != version))
            left = {v.digest for v in kept.versions}
            gone = [v for v in record.versions if v not in kept.versions]
            if kind == "masks":
                self._refuse_needed(name, gone, {v.digest for v in gone} - left)
            for digest in {v.digest for v in gone} - left:  # its grace period starts when the last version goes
                if self._path(digest).exists():
                    os.utime(self._path(digest))
            self._replace(kind, name, kept)

    def collect(self, grace_s: float = GRACE_S) -> Sequence[str]:
        """Deletes half-written files too: under the exclusive lock nobody else is writing."""
        with self._locked(fcntl.LOCK_EX):
            disk.sweep(self._folders(), 0)
            held = set()
            for kind in KINDS:
                for name in self._records.names(kind):  # one that is damaged may be of any blob: it raises
                    held |= {version.digest for version in self._records.read(kind, name).versions}
            oldest, collected = time.time() - grace_s, []
            for path in sorted(self._blobs.iterdir()):
                digest = f"sha256:{path.name}"
                if digest not in held and path.stat().st_mtime <= oldest:
                    path.unlink()
                    collected.append(digest)
        return collected

    def examine(self, *, mend: bool) -> Sequence[Finding]:
        with self._locked(fcntl.LOCK_EX):
            found = mending.examine(self._folder, self._records.highest, mend=mend)
            self._records.forget()
        return found

    def records(self, kind: Kind) -> Iterator[tuple[str, Record]]:
        with self._locked(fcntl.LOCK_SH):
            found = [(name, self._records.read(kind, name)) for name in self._records.names(kind)]
        yield from found

    def store(self, data: bytes) -> str:
        digest = digest_of(data)
        with self._locked(fcntl.LOCK_SH):
            disk.write(self._path(digest), data)
        return digest

    def put_back(self, kind: Kind, name: str, record: Record) -> None:
        with self._locked(fcntl.LOCK_EX):
            known = self._records.read(kind, name)
            if not known.versions:
                self._replace(kind, name, replace(record, last=max(known.last, record.last)))

    def put_over(self, kind: Kind, name: str, before: Record, after: Record) -> None:
        with self._locked(fcntl.LOCK_EX):
            if not self._records.read(kind, name).is_like(before):
                raise Conflict(f"{kind[:-1]} {name} was changed meanwhile: try again")
            self._replace(kind, name, after)

    def listen(self, heard: Callable[[], object]) -> None:
        self._heard = heard

    def check(self) -> None:
        self._records.check()

    def watch(self, told: Callable[[Health], object]) -> None:
        try:
            handle = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:  # who has the lock alone knows that no file is being written
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                oldest_s = 0.0
            except BlockingIOError:
                oldest_s = disk.OWNED_S
            try:
                disk.sweep(self._folders(), oldest_s)
            finally:
                os.close(handle)
        except OSError:
            pass  # the first look says what is wrong
        self._watch = Watch(self._look, told)
        self._watch.start()

    def health(self) -> Health:
        return self._watch.health() if self._watch is not None else Health()

    def epoch(self) -> str:
        return self._epoch

    def close(self) -> None:
        """Others need not reckon with this server any more."""
        if self._watch is not None:
            self._watch.stop()
            self._announced.withdraw()

    def _look(self) -> None:
        self.check()
        self._announced.announce()

    def _begin(self) -> str:
        """The epoch; made here where the registry has none."""
        path = self._folder / "epoch"
        try:
            if not path.exists():
                temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
                temporary.write_text(secrets.token_hex(8))
                try:
                    os.link(temporary, path)  # of two that begin at once, one wins
                except FileExistsError:
                    pass
                finally:
                    temporary.unlink()
            return path.read_text().strip()
        except OSError:  # a folder that can only be read keeps what it has
            return ""

    def _folders(self) -> tuple[Path, ...]:
        copies = [self._copies / kind for kind in KINDS]
        return (self._blobs, *(self._folder / kind for kind in KINDS), *copies, self._folder / "servers", self._folder)

    def _path(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def _guard(
        self,
        kind: Kind,
        name: str,
        holds: Sequence[Hold],
        needs: Sequence[str],
        if_match: str | None,
        if_absent: bool,
    ) -> Record:
        """The record of a name, after checking that this upload may change it."""
        record = self._records.read(kind, name)
        entry = record.entry(name)
        if if_absent and entry:
            raise PreconditionFailed(f"{kind[:-1]} {name} exists, its current digest is {entry.current.digest}")
        if if_match is not None and (entry is None or entry.current.digest != if_match):
            found = f"its current digest is {entry.current.digest}" if entry else "it does not exist"
            raise PreconditionFailed(f"{kind[:-1]} {name} is not at {if_match}: {found}")
        named = {hold.digest for hold in holds}
        missing = [hold.digest for hold in holds if not self._is_there(hold)]
        if loose := [digest for digest in needs if digest not in named]:
            there = {version.digest for mask in self._records.entries("masks") for version in mask.versions}
            missing += [digest for digest in loose if digest not in there]
        if missing:
            raise MissingMasks(f"{kind[:-1]} {name} needs masks that are not in the registry: {', '.join(missing)}")
        return record

    def _is_there(self, hold: Hold) -> bool:
        versions = self._records.read("masks", hold.name).versions
        return any((version.version, version.digest) == (hold.version, hold.digest) for version in versions)

    def _refuse_needed(self, name: str, gone: Sequence[Version], digests: set[str]) -> None:
        """Raise if something that stays holds one of these versions, or needs a digest that no mask but `name` has.

        Cascades hold their masks, and a mask holds the parent that it is coded against.
        """
        numbers, users, needing = {version.version for version in gone}, set[str](), dict[str, set[str]]()
        for user in (*self._records.entries("cascades"), *self._records.entries("masks")):
            for version in user.versions:
                if version in gone and user.name == name:
                    continue
                if any(hold.name == name and hold.version in numbers for hold in version.holds):
                    users.add(user.name)
                elif not version.holds and (needed := digests & set(version.needs)):
                    needing.setdefault(user.name, set()).update(needed)
        if needing:
            others = {v.digest for mask in self._records.entries("masks") if mask.name != name for v in mask.versions}
            users |= {user for user, needed in needing.items() if needed - others}
        if users:
            raise StillNeeded(name, [*users])

    def _replace(self, kind: Kind, name: str, record: Record) -> None:
        self._records.replace(kind, name, record, self._announced.oldest())
        self._heard()

    def _locked(self, how: int) -> AbstractContextManager[None]:
        return disk.locked(self._folder / "lock", how)
