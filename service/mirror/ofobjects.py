"""Files in a store as one side of a mirror: the records and blobs of a folder registry, without its lock.

`<backbone>/masks/NAME.json`, `<backbone>/cascades/NAME.json`, `<backbone>/blobs/sha256/<hex>`. A file is written before
the record that names it. One mirror writes at a time: a store has no lock to hold.
"""

from __future__ import annotations

import re

from service.mirror.side import Extra, Fetch, Numbered, checked, files_of, merged
from service.objects import Objects
from service.registry.base import KINDS, Kind, Version
from service.registry.record import Record, parse_record
from smn_core.errors import Unavailable
from smn_core.names import NAME

BACKBONE = re.compile(r"[0-9a-f]{16}")
MOST_RECORD_BYTES = 64 * 2**20


class ObjectSide(Numbered):
    """A store that a mirror wrote, or writes."""

    def __init__(self, url: str) -> None:
        self.objects = Objects(url)

    def __str__(self) -> str:
        return self.objects.url

    def backbones(self) -> list[str]:
        return [name for name in self.objects.list() if BACKBONE.fullmatch(name)]

    def records(self, backbone: str, kind: Kind) -> dict[str, Record]:
        found = {}
        for file in self.objects.list(f"{backbone}/{kind}"):
            name = file.removesuffix(".json")
            if name != file and NAME.fullmatch(name):
                try:
                    found[name] = parse_record(self.objects.read(f"{backbone}/{kind}/{file}", MOST_RECORD_BYTES))
                except ValueError as error:
                    where = f"{self}/{backbone}/{kind}/{file}"
                    raise Unavailable(f"{where} is damaged: {error}; delete it, and mirror again") from error
        return found

    def file(self, backbone: str, kind: Kind, name: str, version: Version, digest: str) -> bytes:
        return checked(self.objects.read(_blob(backbone, digest)), digest, f"{kind[:-1]} {name}@{version.version}")

    def take(self, backbone: str, kind: Kind, name: str, before: Record | None, wanted: Record, fetch: Fetch) -> None:
        after = merged(kind, name, before, wanted)
        for version in self.lacks(before, wanted):
            if self.objects.bytes_of(_blob(backbone, version.digest)) == version.bytes and version.parent is None:
                continue  # of a run that was stopped
            for digest, data in fetch(version).items():
                self.objects.write(_blob(backbone, digest), data)
        self._write(backbone, kind, name, after)

    def remove(self, backbone: str, kind: Kind, name: str, extra: Extra | None) -> None:
        before = self.records(backbone, kind)[name]
        gone = set(extra.versions) if extra is not None else {version.version for version in before.versions}
        kept = tuple(version for version in before.versions if version.version not in gone)
        dropped = before.aliases if extra is None else extra.aliases
        aliases = {alias: at for alias, at in before.aliases.items() if alias not in dropped}
        current = before.current if kept else 0
        self._write(backbone, kind, name, Record(before.last, current, kept, aliases, before.epoch))

    def tidy(self, backbone: str) -> None:
        """Delete blobs that no record names, and the record that a killed mirror was writing."""
        held = {
            digest.removeprefix("sha256:")
            for kind in KINDS
            for record in self.records(backbone, kind).values()
            for version in record.versions
            for digest in files_of(version)
        }
        for name in self.objects.list(f"{backbone}/blobs/sha256"):
            if name not in held:
                self.objects.delete(f"{backbone}/blobs/sha256/{name}")
        for kind in KINDS:
            for file in self.objects.list(f"{backbone}/{kind}"):
                if file.startswith("."):
                    self.objects.delete(f"{backbone}/{kind}/{file}")

    def close(self) -> None:
        pass

    def _write(self, backbone: str, kind: Kind, name: str, record: Record) -> None:
        self.objects.write(f"{backbone}/{kind}/{name}.json", record.to_json())


def _blob(backbone: str, digest: str) -> str:
    return f"{backbone}/blobs/sha256/{digest.removeprefix('sha256:')}"
