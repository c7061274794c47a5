"""A registry in a folder, for one machine or a shared disk with `flock`.

    <root>/<first 16 hex of the fingerprint>/
        lock                      empty; who writes holds it
        blobs/sha256/<64 hex>     immutable; its mtime is when it was last uploaded or lost its last version
        masks/<name>.json         {"last", "current", "versions": [{"version","digest","bytes","uploaded","needs"}]}
        cascades/<name>.json      the same

A blob is written under the shared lock, a name under the exclusive one; both as `.<random>.tmp`, flushed, then renamed,
so that readers need no lock. A deleted name stays as a tombstone without versions, which keeps its last number.

Readers notice a change by `stat`: a record is read again when its inode, size or mtime differ. Two renames can fall
into one tick of the file system's clock and reuse an inode, so writers set the mtime themselves, always later than the
last.
"""

from __future__ import annotations

import bisect
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from service.registry.base import (
    GRACE_S,
    KINDS,
    NEIGHBOURS,
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
from smn_core.errors import Conflict, InvalidArgument, MissingMasks, PreconditionFailed, Unavailable
from smn_core.names import check_name
from smn_core.tensorfile import digest_of

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class _Record:
    """What `<name>.json` holds; `current` is 0 and `versions` empty once the name is deleted."""

    last: int = 0
    current: int = 0
    versions: tuple[Version, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()

    def entry(self, name: str) -> Entry | None:
        current = next((version for version in self.versions if version.version == self.current), None)
        return Entry(name, current, self.versions) if current else None

    def to_json(self) -> str:
        versions = [asdict(version) | {"needs": n} for version, n in zip(self.versions, self.needs, strict=True)]
        return json.dumps({"last": self.last, "current": self.current, "versions": versions}, indent=1) + "\n"

    @staticmethod
    def from_json(text: bytes) -> _Record:
        table = json.loads(text)
        needs = tuple(tuple(version.pop("needs")) for version in table["versions"])
        return _Record(table["last"], table["current"], tuple(Version(**v) for v in table["versions"]), needs)


class DirectoryRegistry:
    """See `Registry`; `root` may hold the registries of several backbones."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        self._folder = Path(root) / fingerprint[:16]
        self._blobs = self._folder / "blobs" / "sha256"
        self._cache: dict[tuple[Kind, str], tuple[Stamp, _Record]] = {}
        self._heard: Callable[[], object] = lambda: None
        try:
            for folder in (self._blobs, *(self._folder / kind for kind in KINDS)):
                folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidArgument(f"the registry {root} is not a folder") from error
        except OSError as error:
            raise self._away(error) from error

    @staticmethod
    def is_at(root: Path, fingerprint: str) -> bool:
        """Whether a registry of this backbone has been made there."""
        return (root / fingerprint[:16] / "blobs").is_dir()

    def resolve(self, kind: Kind, reference: str) -> Resolved:
        """Costs one `stat` where nothing has changed."""
        name, pin = parse_reference(reference)
        version = pick(kind, self.entry(kind, name), pin)
        return Resolved(name, version.version, version.digest)

    def entry(self, kind: Kind, name: str) -> Entry:
        check_name(name)
        entry = self._read(kind, name).entry(name)
        if entry is None:
            raise absent(kind, name, self._neighbours(kind, name))
        return entry

    def names(self, kind: Kind, limit: int = 100, after: str = "") -> Sequence[Entry]:
        found: list[Entry] = []
        for entry in self._entries(kind, after):
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
            raise self._away(error) from error
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
        self._guard(kind, name, needs, if_match, if_absent)  # again under the lock: here it saves writing the blob
        with self._locked(fcntl.LOCK_SH):
            self._write(self._path(digest), data)
        with self._locked(fcntl.LOCK_EX):
            record = self._guard(kind, name, needs, if_match, if_absent)
            if not self._path(digest).exists():  # a collection came between
                self._write(self._path(digest), data)
            entry = record.entry(name)
            if entry and entry.current.digest == digest:
                return Published(entry.current, created=False)
            uploaded = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            version = Version(record.last + 1, digest, len(data), uploaded)
            versions, all_needs = (*record.versions, version), (*record.needs, needs)
            self._replace(kind, name, _Record(version.version, version.version, versions, all_needs))
        return Published(version, created=True)

    def set_current(self, kind: Kind, name: str, version: int) -> Version:
        with self._locked(fcntl.LOCK_EX):
            found = pick(kind, self.entry(kind, name), version)
            record = self._read(kind, name)
            if record.current != version:
                self._replace(kind, name, replace(record, current=version))
        return found

    def delete(self, kind: Kind, name: str, version: int | None = None) -> None:
        with self._locked(fcntl.LOCK_EX):
            entry, record = self.entry(kind, name), self._read(kind, name)
            if version is None:
                kept = _Record(record.last)
            elif pick(kind, entry, version) == entry.current:
                raise Conflict(f"{name}@{version} is the current version: make another one current, or delete {name}")
            else:
                pairs = [p for p in zip(record.versions, record.needs, strict=True) if p[0].version != version]
                kept = replace(record, versions=tuple(v for v, _ in pairs), needs=tuple(n for _, n in pairs))
            gone = {v.digest for v in record.versions} - {v.digest for v in kept.versions}
            if kind == "masks":
                self._refuse_needed(name, gone)
            for digest in gone:  # its grace period starts when the last version goes
                if self._path(digest).exists():
                    os.utime(self._path(digest))
            self._replace(kind, name, kept)

    def collect(self, grace_s: float = GRACE_S) -> Sequence[str]:
        """Deletes half-written files of a crash too: under the exclusive lock nobody else is writing."""
        with self._locked(fcntl.LOCK_EX):
            held = {version.digest for kind in KINDS for entry in self._entries(kind) for version in entry.versions}
            oldest, collected = time.time() - grace_s, []
            for folder in (self._blobs, *(self._folder / kind for kind in KINDS)):
                for path in folder.glob(".*.tmp"):
                    path.unlink()
            for path in sorted(self._blobs.iterdir()):
                digest = f"sha256:{path.name}"
                if digest not in held and path.stat().st_mtime <= oldest:
                    path.unlink()
                    collected.append(digest)
        return collected

    def listen(self, heard: Callable[[], object]) -> None:
        self._heard = heard

    def check(self) -> None:
        try:
            os.listdir(self._folder)  # noqa: PTH208 - a listing that fails when it is made, not when it is read
        except OSError as error:
            raise self._away(error) from error

    def close(self) -> None:
        """Does nothing: no file is held open."""

    def _path(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def _read(self, kind: Kind, name: str) -> _Record:
        """The record of a name; an empty one if the name was never used."""
        path = self._folder / kind / f"{name}.json"
        try:
            cached = self._cache.get((kind, name))
            if cached and cached[0] == _stamp(path.stat()):
                return cached[1]
            with path.open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                record = _Record.from_json(file.read())
        except FileNotFoundError:
            self.check()
            return _Record()
        except OSError as error:
            raise self._away(error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"{path} is damaged: {error}") from error
        self._cache[kind, name] = stamp, record
        return record

    def _entries(self, kind: Kind, after: str = "") -> Iterator[Entry]:
        """The entries of all names after `after`, in order."""
        for name in sorted(name for name in self._names(kind) if name > after):
            if entry := self._read(kind, name).entry(name):
                yield entry

    def _names(self, kind: Kind) -> list[str]:
        try:
            files = os.listdir(self._folder / kind)  # noqa: PTH208 - as in check
        except OSError as error:
            raise self._away(error) from error
        return [file.removesuffix(".json") for file in files if file.endswith(".json") and not file.startswith(".")]

    def _neighbours(self, kind: Kind, name: str) -> list[str]:
        """The names beside one in the order; a deleted one is none, so only these records are read."""
        names = sorted(self._names(kind))
        place = bisect.bisect_left(names, name)
        around = names[max(0, place - NEIGHBOURS) : place + NEIGHBOURS]
        return [near for near in around if self._read(kind, near).entry(near)]

    def _guard(self, kind: Kind, name: str, needs: Sequence[str], if_match: str | None, if_absent: bool) -> _Record:
        """The record of a name, after checking that this upload may change it."""
        record = self._read(kind, name)
        entry = record.entry(name)
        if if_absent and entry:
            raise PreconditionFailed(f"{kind[:-1]} {name} exists, its current digest is {entry.current.digest}")
        if if_match is not None and (entry is None or entry.current.digest != if_match):
            found = f"its current digest is {entry.current.digest}" if entry else "it does not exist"
            raise PreconditionFailed(f"{kind[:-1]} {name} is not at {if_match}: {found}")
        if needs:
            held = {version.digest for mask in self._entries("masks") for version in mask.versions}
            if missing := [digest for digest in needs if digest not in held]:
                raise MissingMasks(f"{kind[:-1]} {name} needs masks that are not in the registry: {', '.join(missing)}")
        return record

    def _refuse_needed(self, name: str, gone: set[str]) -> None:
        """Raise Conflict if a cascade needs one of these digests and no mask but `name` holds it."""
        cascades = {entry.name: self._read("cascades", entry.name) for entry in self._entries("cascades")}
        needed = {name: gone & {d for n in r.needs for d in n} for name, r in cascades.items()}
        if not any(needed.values()):
            return
        others = {v.digest for mask in self._entries("masks") if mask.name != name for v in mask.versions}
        if users := [cascade for cascade, digests in needed.items() if digests - others]:
            raise Conflict(f"mask {name} is needed by: {', '.join(users)}; delete the cascade first")

    def _replace(self, kind: Kind, name: str, record: _Record) -> None:
        path = self._folder / kind / f"{name}.json"
        before = path.stat().st_mtime_ns if path.exists() else 0
        self._write(path, record.to_json().encode(), max(time.time_ns(), before + 1))
        self._heard()

    def _write(self, path: Path, data: bytes, mtime_ns: int | None = None) -> None:
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                if mtime_ns is not None:
                    os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._away(error) from error

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Hold the lock against threads and processes. It ends with the descriptor, so a crash releases it too."""
        try:
            handle = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._away(error) from error
        try:
            fcntl.flock(handle, how)
            yield
        except OSError as error:
            raise self._away(error) from error
        finally:
            os.close(handle)

    def _away(self, error: OSError) -> Unavailable:
        return Unavailable(f"the registry in {self._folder} cannot be used: {error.strerror or error}")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_ino, status.st_size


def _sync_folder(folder: Path) -> None:
    """Flush a folder to disk: until then a rename in it may be lost."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
