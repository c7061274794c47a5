"""A registry as one archive, and back: every name, version, alias and file, of all its backbones or of one.

A tar file; docs/formats.md has it under "smn-registry/1". It is written whole or not at all, and read in full and
checked before anything is put into a registry.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from service.registry.base import KINDS, Kind
from service.registry.record import Record, parse_record
from service.registry.whole import WholeRegistry
from smn_core.errors import InvalidArgument, SMNError, Unavailable
from smn_core.files import replacing
from smn_core.names import NAME

FORMAT = "smn-registry/1"
MANIFEST = "manifest.json"
SETTLED_IN = 3
"""How often the records are read again where they changed while they were read."""


class InvalidArchive(SMNError):
    """A file that is no whole archive of a registry."""

    code = "invalid_archive"


@dataclass(frozen=True)
class Held:
    """What an archive has of one backbone; `backbone` is the first 16 hex digits of its fingerprint."""

    backbone: str
    records: dict[tuple[Kind, str], Record]

    @property
    def digests(self) -> list[str]:
        return sorted({version.digest for record in self.records.values() for version in record.versions})

    @property
    def names(self) -> int:
        """Names that are there; deleted ones keep a record too."""
        return sum(bool(record.versions) for record in self.records.values())


def write_archive(path: Path, backbones: Sequence[str], open_one: Callable[[str], WholeRegistry]) -> list[Held]:
    """Back a registry up, while servers use it. Returns what the archive holds.

    Raises:
        Unavailable: the registry is away, or a file in it is missing or damaged; there is no archive then.
        InvalidArgument: the archive cannot be written.
    """
    found = []
    with replacing(path) as temporary, tarfile.open(temporary, "w") as archive:
        sums: dict[str, str] = {}
        for backbone in backbones:
            registry = open_one(backbone)
            try:
                held = _settled(registry, backbone)
                for (kind, name), record in held.records.items():
                    data = record.to_json()
                    sums[f"{backbone}/{kind}/{name}.json"] = sha256(data).hexdigest()
                    _add(archive, f"{backbone}/{kind}/{name}.json", data)
                for digest in held.digests:
                    member = _member(backbone, digest)
                    sums[member] = digest.removeprefix("sha256:")
                    _add(archive, member, registry.blob(digest))
            finally:
                registry.close()
            found.append(held)
        _add(archive, MANIFEST, json.dumps({"format": FORMAT, "sha256": sums}, indent=1).encode())
    read_archive(path)
    return found


def read_archive(path: Path) -> list[Held]:
    """Read a whole archive and check it.

    Raises:
        InvalidArchive: something is missing, damaged or too much; the message names it.
    """
    sums: dict[str, str] = {}
    records: dict[str, dict[tuple[Kind, str], Record]] = {}
    manifest: object = None
    for member, data in _members(path):
        if member == MANIFEST:
            try:
                manifest = json.loads(data)
            except ValueError as error:
                raise InvalidArchive(f"{path}: its {MANIFEST} is damaged: {error}") from error
            continue
        sums[member] = sha256(data).hexdigest()
        backbone, kind, name = _parts(path, member)
        if of := next((one for one in KINDS if one == kind), None):
            try:
                records.setdefault(backbone, {})[of, name.removesuffix(".json")] = parse_record(data)
            except ValueError as error:
                raise InvalidArchive(f"{path}: {member} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InvalidArchive(f"{path} is not a whole archive of a registry: it lacks its {MANIFEST}")
    wanted = manifest.get("sha256")
    if not isinstance(wanted, dict) or sums != wanted:
        differing = sorted(set(sums.items()) ^ set(wanted.items() if isinstance(wanted, dict) else ()))
        raise InvalidArchive(f"{path}: {differing[0][0] if differing else MANIFEST} is missing, damaged or too much")
    found = [Held(backbone, of) for backbone, of in sorted(records.items())]
    for held in found:
        if lost := [digest for digest in held.digests if _member(held.backbone, digest) not in sums]:
            raise InvalidArchive(f"{path}: it lacks {lost[0]}")
    return found


def restore_archive(path: Path, open_one: Callable[[str], WholeRegistry]) -> list[Held]:
    """Put everything of an archive into a registry. A name that has versions already must have the same.

    A name without versions is no other one: a server that outlived its registry has told it the numbers that it knew.

    Raises:
        InvalidArchive: as `read_archive`; nothing was put in.
        InvalidArgument: the registry has other things under a name; nothing of that backbone was put in.
        Unavailable: the registry went away. The same call again puts in the rest.
    """
    found = read_archive(path)
    registries = {held.backbone: open_one(held.backbone) for held in found}
    try:
        for held in found:
            there = _records(registries[held.backbone])
            for key, record in held.records.items():
                if key in there and there[key].versions and there[key].versions != record.versions:
                    raise InvalidArgument(
                        f"{key[0][:-1]} {key[1]} is in the registry, and is another: restore elsewhere"
                    )
        for member, data in _members(path):
            if member != MANIFEST and _parts(path, member)[1] == "blobs":
                registries[member.partition("/")[0]].store(data)
        for held in found:
            for kind in KINDS:  # masks first: cascades hold them
                for (of, name), record in held.records.items():
                    if of == kind:
                        registries[held.backbone].put_back(kind, name, record)
    finally:
        for registry in registries.values():
            registry.close()
    return found


def _settled(registry: WholeRegistry, backbone: str) -> Held:
    """All records; read again where a cascade came whose masks were read before it."""
    for _ in range(SETTLED_IN):
        records = _records(registry)
        there = {
            (name, version.version)
            for (kind, name), record in records.items()
            if kind == "masks"
            for version in record.versions
        }
        held = {(hold.name, hold.version) for record in records.values() for v in record.versions for hold in v.holds}
        if held <= there:
            return Held(backbone, records)
    raise Unavailable(f"a cascade holds {sorted(held - there)[0][0]}, which is not there: smn gc --check says more")


def _records(registry: WholeRegistry) -> dict[tuple[Kind, str], Record]:
    return {(kind, name): record for kind in reversed(KINDS) for name, record in registry.records(kind)}


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is None:
                    raise InvalidArchive(f"{path}: {member.name!r} is no file")
                yield member.name, file.read()
    except FileNotFoundError as error:
        raise InvalidArchive(f"there is no archive {path}") from error
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InvalidArchive(f"{path} is not a whole archive of a registry: {error}") from error


def _parts(path: Path, member: str) -> tuple[str, str, str]:
    """Backbone, kind (or "blobs") and file name of a member that an archive may have."""
    backbone, _, rest = member.partition("/")
    kind, _, name = rest.partition("/")
    sound = len(backbone) == 16 and set(backbone) <= set("0123456789abcdef")
    if kind == "blobs":
        sound = sound and name.startswith("sha256/") and len(name) == 71
    else:
        sound = sound and kind in KINDS and name.endswith(".json") and bool(NAME.fullmatch(name.removesuffix(".json")))
    if not sound:
        raise InvalidArchive(f"{path}: {member[:200]!r} does not belong in an archive of a registry")
    return backbone, kind, name


def _member(backbone: str, digest: str) -> str:
    return f"{backbone}/blobs/sha256/{digest.removeprefix('sha256:')}"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    archive.addfile(info, io.BytesIO(data))
