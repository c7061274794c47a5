"""A server as one side of a mirror, through its API. As the second place it gives version numbers of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from service.answers import ServerError
from service.client import Client
from service.mirror.side import Extra, Fetch, checked
from service.registry.base import Hold, Kind, Version
from service.registry.open import hide_user
from service.registry.record import Record
from smn_core.cascade.file import parse_cascade
from smn_core.errors import InvalidArgument, InvalidData, MissingMasks


class ServerSide:
    """A server, which has one backbone. Versions are told apart by their digests."""

    def __init__(self, url: str, key: str | None, flag: str = "a key") -> None:
        self._url, self._client, self._flag = url, Client(url, key), flag
        self._backbone: str | None = None
        self._parent: tuple[str, bytes] = "", b""  # the last one that was asked for: many masks have the same

    def __str__(self) -> str:
        return hide_user(self._url)

    def backbones(self) -> list[str]:
        if self._backbone is None:
            with self._told():
                self._backbone = str(self._client.info()["fingerprint"])[:16]
        return [self._backbone]

    def records(self, backbone: str, kind: Kind) -> dict[str, Record]:
        if backbone not in self.backbones():
            raise InvalidData(f"{self} serves the backbone {self.backbones()[0]}, not {backbone}")
        read = self._client.mask if kind == "masks" else self._client.cascade
        with self._told():
            return {entry["name"]: _record_of(read(entry["name"])) for entry in self._client.names(kind)}

    def file(self, backbone: str, kind: Kind, name: str, version: Version, digest: str) -> bytes:
        place, number = name, version.version
        if digest == self._parent[0]:
            return self._parent[1]
        if digest != version.digest:  # a server gives out nothing by its digest
            hold = version.hold_of(digest)
            if hold is None:
                raise MissingMasks(f"{kind[:-1]} {name}@{number} needs {digest}, which the key may not see at {self}")
            place, number = hold.name, hold.version
        data = checked(self._client.pull(place, number, kind), digest, f"{kind[:-1]} {place}@{number}")
        if digest != version.digest:
            self._parent = digest, data
        return data

    def lacks(self, before: Record | None, wanted: Record) -> Sequence[Version]:
        known = {version.digest for version in before.versions} if before is not None else set()
        found = {v.digest: v for v in wanted.versions if v.digest not in known}  # a digest once: its newest version
        return sorted(found.values(), key=lambda version: version.version)

    def is_behind(self, before: Record | None, wanted: Record) -> bool:
        if before is None or self.lacks(before, wanted):
            return True
        here, there = _digests(before), _digests(wanted)
        told = {alias: here.get(at) for alias, at in before.aliases.items()}
        return here[before.current] != there[wanted.current] or any(
            told.get(alias) != there[at] for alias, at in wanted.aliases.items()
        )

    def take(self, backbone: str, kind: Kind, name: str, before: Record | None, wanted: Record, fetch: Fetch) -> None:
        numbers = {v.digest: v.version for v in before.versions} if before is not None else {}
        current = _digests(before).get(before.current) if before is not None else None
        for version in self.lacks(before, wanted):
            data = fetch(version)[version.digest]
            with self._told():
                done = self._client.push(name, data, kind=kind)
            numbers[version.digest], current = int(done["version"]), version.digest
        there = _digests(wanted)
        if current != there[wanted.current]:
            self._client.rollback(name, numbers[there[wanted.current]], kind)
        known = dict(before.aliases) if before is not None else {}
        for alias, at in wanted.aliases.items():
            if known.get(alias) != numbers[there[at]]:
                self._client.set_alias(name, alias, numbers[there[at]], kind)

    def extra(self, before: Record, wanted: Record | None) -> Extra:
        kept = set(_digests(wanted).values()) if wanted is not None else set()
        aliases = wanted.aliases if wanted is not None else {}
        return Extra(
            [version.version for version in before.versions if version.digest not in kept],
            [alias for alias in before.aliases if alias not in aliases],
        )

    def remove(self, backbone: str, kind: Kind, name: str, extra: Extra | None) -> None:
        if extra is None:
            self._client.delete(name, None, kind)
            return
        for alias in extra.aliases:
            self._client.delete_alias(name, alias, kind)
        for number in reversed(extra.versions):  # one may be coded against an older one
            self._client.delete(name, number, kind)

    def tidy(self, backbone: str) -> None:
        """Nothing: `smn gc` does it, after its grace period."""

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say which key is missing or has not the right."""
        try:
            yield
        except ServerError as error:
            if error.status not in (401, 403):
                raise
            raise InvalidArgument(f"{self} refuses ({error.status}): {error}; give {self._flag}") from error


def with_needs(kind: Kind, version: Version, data: bytes) -> Version:
    """A version of a cascade that was read from a server, which does not say what each version is made of."""
    if kind != "cascades" or version.holds or version.needs:
        return version
    return replace(version, needs=tuple(dict.fromkeys(parse_cascade(data).masks)))


def _digests(record: Record) -> dict[int, str]:
    return {version.version: version.digest for version in record.versions}


def _record_of(told: dict[str, Any]) -> Record:
    """What `GET /masks/{name}` says, as a record. Raises InvalidData where the answer has another shape."""
    try:
        notes = told.get("notes") or {}
        versions = tuple(
            Version(
                int(v["version"]),
                str(v["digest"]),
                int(v["bytes"]),
                str(v["uploaded"]),
                v.get("vectors"),
                *_tied_to(v.get("parent")),
                notes=json.dumps(notes[str(v["version"])]) if str(v["version"]) in notes else None,
            )
            for v in told["versions"]
        )
        current = int(told["current"]["version"])
        aliases = {str(alias): int(at) for alias, at in (told.get("aliases") or {}).items()}
        return Record(max(v.version for v in versions), current, versions, aliases)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidData(f"the server's answer is not a mask's or cascade's: {error!r}") from error


def _tied_to(parent: dict[str, Any] | None) -> tuple[str | None, tuple[Hold, ...], tuple[str, ...]]:
    """The parent, holds and needs of a version, as an upload has them; no hold where a key may not see the parent."""
    if parent is None:
        return None, (), ()
    digest = str(parent["digest"])
    if parent["name"] is None:
        return digest, (), (digest,)
    return digest, (Hold(digest, str(parent["name"]), int(parent["version"])),), (digest,)
