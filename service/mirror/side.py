"""What a mirror needs of either place, and the record that a name is to have at the second one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from service.registry.base import Kind, Version
from service.registry.record import Record
from smn_core.errors import Conflict, Unavailable
from smn_core.tensorfile import digest_of

Fetch = Callable[[Version], Mapping[str, bytes]]
"""A version -> the files that it needs, by digest, each checked against it."""


@dataclass(frozen=True)
class Extra:
    """What a name has at the second place alone: numbers of versions, and aliases."""

    versions: Sequence[int] = ()
    aliases: Sequence[str] = ()


@runtime_checkable
class Side(Protocol):
    """One of the two places.

    Raises, all methods:
        SMNError: as the registry, the client or the store does.
    """

    def backbones(self) -> list[str]:
        """The first 16 hex digits of the fingerprint of each backbone that it has masks of."""

    def records(self, backbone: str, kind: Kind) -> dict[str, Record]:
        """What is known of each name."""

    def file(self, backbone: str, kind: Kind, name: str, version: Version, digest: str) -> bytes:
        """One of the files of a version."""

    def lacks(self, before: Record | None, wanted: Record) -> Sequence[Version]:
        """Versions that have yet to come, oldest first.

        Raises:
            Conflict: another file has one of their numbers.
        """

    def is_behind(self, before: Record | None, wanted: Record) -> bool:
        """Whether anything of `wanted` has yet to come: versions, which one is current, aliases, notes."""

    def take(self, backbone: str, kind: Kind, name: str, before: Record | None, wanted: Record, fetch: Fetch) -> None:
        """Get what has yet to come: files first, then, in one step, the name."""

    def extra(self, before: Record, wanted: Record | None) -> Extra:
        """What is there and not wanted."""

    def remove(self, backbone: str, kind: Kind, name: str, extra: Extra | None) -> None:
        """Delete what is too much; None: the name with all its versions."""

    def tidy(self, backbone: str) -> None:
        """Delete files that no version needs any more, where nothing else does that."""

    def close(self) -> None:
        """Give connections back."""


def files_of(version: Version) -> tuple[str, ...]:
    """The digests of the files that a version cannot be used without: its own, and that of the mask it is coded by."""
    return (version.digest, *([version.parent] if version.parent is not None else []))


def checked(data: bytes, digest: str, what: str) -> bytes:
    """The bytes. Raises Unavailable unless they are those of the digest."""
    if digest_of(data) != digest:
        raise Unavailable(f"{what} is damaged: it is not {digest}")
    return data


def merged(kind: Kind, name: str, before: Record | None, wanted: Record) -> Record:
    """The record of a name that is to have all versions of both, and else be as `wanted` says.

    Raises:
        Conflict: a number means one file here and another there.
    """
    if before is None:
        return wanted
    versions = {version.version: version for version in before.versions}
    for version in wanted.versions:
        known = versions.get(version.version)
        if known is not None and known.digest != version.digest:
            raise Conflict(
                f"{kind[:-1]} {name}@{version.version} is another file at the second place ({known.digest}): both "
                "have been changed since they were in step. Delete or rename it at one of them"
            )
        notes = version.notes if version.notes is not None or known is None else known.notes
        versions[version.version] = replace(known or version, notes=notes)
    return replace(
        before,
        last=max(before.last, wanted.last),
        current=wanted.current,
        versions=tuple(versions[number] for number in sorted(versions)),
        aliases={**before.aliases, **wanted.aliases},
    )


class Numbered:
    """The part of a side that keeps version numbers: how what it has of a name stands to what is wanted."""

    def lacks(self, before: Record | None, wanted: Record) -> Sequence[Version]:
        known = {version.version for version in before.versions} if before is not None else set()
        return [version for version in wanted.versions if version.version not in known]

    def is_behind(self, before: Record | None, wanted: Record) -> bool:
        try:
            return before is None or not before.is_like(merged("masks", "", before, wanted))
        except Conflict:
            return True

    def extra(self, before: Record, wanted: Record | None) -> Extra:
        kept = {version.version for version in wanted.versions} if wanted is not None else set()
        aliases = wanted.aliases if wanted is not None else {}
        return Extra(
            [version.version for version in before.versions if version.version not in kept],
            [alias for alias in before.aliases if alias not in aliases],
        )
