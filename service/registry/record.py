"""Record format 2: what a registry keeps of one name, in a folder and in Redis. docs/formats.md has it.

Everything that format 1 does not have stands beside its `versions`, never in them: a server that knows format 1 alone
reads such a record as one of its own, and a server of this version reads both.
"""

from __future__ import annotations

import json
import re
from calendar import timegm
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import gmtime, strftime, strptime
from typing import Any

from service.registry.base import ALIAS, Entry, Hold, Version
from smn_core.names import NAME
from smn_core.tensorfile import DIGEST

FORMAT = 2
"""The newest format that this server reads and writes."""
TIME = "%Y-%m-%dT%H:%M:%SZ"
VECTORS = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Record:
    """One name. `current` is 0 and `versions` empty once the name is deleted; `last` stays.

    `format` is what it was read as, or is to be written as.
    """

    last: int = 0
    current: int = 0
    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    epoch: str = ""
    format: int = FORMAT

    def entry(self, name: str) -> Entry | None:
        """What readers see; None of a name that is deleted."""
        current = next((version for version in self.versions if version.version == self.current), None)
        return Entry(name, current, self.versions, self.aliases) if current else None

    def is_like(self, other: Record) -> bool:
        """Whether nothing changed between them: numbers, files, aliases, notes. Format and epoch are the place's."""
        mine, theirs = (
            (r.last, r.current, r.versions, dict(r.aliases), [v.notes for v in r.versions]) for r in (self, other)
        )
        return mine == theirs

    @property
    def needs_format(self) -> int:
        """The oldest format that loses nothing which people put into the record."""
        return 2 if self.aliases or any(version.notes for version in self.versions) else 1

    def without_aliases_of(self, gone: set[int]) -> Record:
        return replace(self, aliases={alias: at for alias, at in self.aliases.items() if at not in gone})

    def to_table(self) -> dict[str, Any]:
        """As JSON has it; of format 1 only what format 1 has."""
        versions = [
            {
                "version": version.version,
                "digest": version.digest,
                "bytes": version.bytes,
                "uploaded": version.uploaded,
                "needs": list(version.needs),
            }
            for version in self.versions
        ]
        table: dict[str, Any] = {"last": self.last, "current": self.current, "versions": versions}
        if self.format < 2:
            return table
        facts = {str(version.version): facts for version in self.versions if (facts := _facts(version))}
        return {"format": self.format, "epoch": self.epoch, **table, "aliases": dict(self.aliases), "facts": facts}

    def to_redis(self) -> str:
        """As Redis keeps it, whose scripts count seconds and read digests out of one text."""
        table = self.to_table()
        del table["last"]  # it has a place of its own there, and stays when the record goes
        for raw in table["versions"]:
            raw["uploaded"] = timegm(strptime(raw["uploaded"], TIME))
            raw["needs"] = " ".join(raw["needs"])
        return json.dumps(table)

    def to_json(self) -> bytes:
        return (json.dumps(self.to_table(), indent=1) + "\n").encode()


def parse_record(text: bytes, last: int = 0) -> Record:
    """A record of either backend, of any format; `last` where the record does not have it.

    Raises:
        ValueError: the record is damaged; the message says how.
    """
    try:
        return _record_of(json.loads(text), last)
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"it lacks something, or has it in another form ({type(error).__name__}: {error})") from error


def _record_of(table: Any, last: int) -> Record:
    written = table.get("format", 1)
    _require(isinstance(written, int) and written >= 1, "its format is no number")
    _require(written <= FORMAT, f"its format is {written}, this server reads {FORMAT}: update the server")
    all_facts = table.get("facts") or {}
    versions = tuple(_version_of(raw, all_facts.get(str(raw["version"]), {})) for raw in table["versions"])
    numbers = [version.version for version in versions]
    current, last = table["current"], table.get("last", max([last, *numbers]))
    _require(numbers == sorted(set(numbers)), "its versions are not in order")
    _require(current in numbers if numbers else current == 0, "its current version is not there")
    _require(isinstance(last, int) and last >= max([0, *numbers]), "its last number is too small")
    # A server of format 1 may have deleted a version under an alias: the alias went with it.
    aliases = {
        alias: at for alias, at in (table.get("aliases") or {}).items() if ALIAS.fullmatch(alias) and at in numbers
    }
    return Record(last, current, versions, aliases, str(table.get("epoch", "")), written)


def _version_of(raw: Mapping[str, Any], facts: Mapping[str, Any]) -> Version:
    number, digest, size, uploaded, needs = (raw[key] for key in ("version", "digest", "bytes", "uploaded", "needs"))
    _require(isinstance(number, int) and number > 0 and isinstance(size, int), "a version has no number")
    if isinstance(uploaded, int | float):
        uploaded = strftime(TIME, gmtime(uploaded))
    needs = tuple(needs.split() if isinstance(needs, str) else needs)
    holds = tuple(Hold(hold["digest"], hold["name"], hold["version"]) for hold in facts.get("holds") or ())
    vectors, parent, notes = facts.get("vectors"), facts.get("parent"), facts.get("notes")
    for one in (digest, *needs, *(hold.digest for hold in holds), *([parent] if parent is not None else [])):
        _require(isinstance(one, str) and DIGEST.fullmatch(one), "a digest is none")
    _require(all(NAME.fullmatch(h.name) and isinstance(h.version, int) for h in holds), "a hold names nothing")
    _require(vectors is None or VECTORS.fullmatch(vectors), "its vectors are no hash")
    _require(isinstance(uploaded, str), "a version has no time")
    _require(notes is None or isinstance(notes, str), "its notes are no text")
    return Version(number, digest, size, uploaded, vectors, parent, holds, needs, notes)


def facts_of(
    vectors: str | None, parent: str | None, holds: tuple[Hold, ...], notes: str | None = None
) -> dict[str, Any]:
    """What format 2 keeps of a version beside what format 1 has; empty where there is nothing."""
    found: dict[str, Any] = {"vectors": vectors, "parent": parent, "notes": notes}
    found["holds"] = [{"digest": hold.digest, "name": hold.name, "version": hold.version} for hold in holds]
    return {key: value for key, value in found.items() if value}


def _facts(version: Version) -> dict[str, Any]:
    return facts_of(version.vectors, version.parent, version.holds, version.notes)


def _require(holds: object, wrong: str) -> None:
    if not holds:
        raise ValueError(wrong)
