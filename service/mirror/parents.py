"""Masks that others are coded against: they go first, and without them the others do not go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from service.registry.base import Hold, Version
from service.registry.record import Record
from smn_core.errors import MissingMasks


def parents_first(records: Mapping[str, Record]) -> list[str]:
    """The names, each after those whose versions its own hold; of a ring, one has to be first."""
    found: list[str] = []
    begun = set[str]()
    for first in records:
        path = [first] if first not in begun else []
        while path:
            begun.add(path[-1])
            ahead = (hold.name for hold in _holds(records[path[-1]]) if hold.name in records)
            following = next((name for name in ahead if name not in begun), None)
            if following is None:
                found.append(path.pop())
            else:
                path.append(following)
    return found


class Expected:
    """The versions of masks that the second place has, or gets before a turn ends, each as one would hold it."""

    def __init__(self, there: Mapping[str, Record], coming: Mapping[str, Record]) -> None:
        self._there = set(_versions(there.items()))
        self._found = self._there | set(_versions(coming.items()))

    def refuse(self, name: str, record: Record) -> None:
        """This does not come."""
        self._found -= set(_versions([(name, record)])) - self._there

    def require_parents(self, name: str, versions: Sequence[Version]) -> None:
        """Raise MissingMasks unless the second place will have what these versions are coded against."""
        for version in versions:
            if version.parent is None:
                continue
            told = f"mask {name}@{version.version} is coded against"
            hold = version.hold_of(version.parent)
            if hold is None:
                raise MissingMasks(f"{told} {version.parent}, which the key may not see at the first place")
            if hold not in self._found:
                missing = f"{hold.name}@{hold.version} ({hold.digest})"
                raise MissingMasks(f"{told} {missing}, which the second place does not have")


def _holds(record: Record) -> Iterator[Hold]:
    return (hold for version in record.versions for hold in version.holds)


def _versions(records: Iterable[tuple[str, Record]]) -> Iterator[Hold]:
    return (Hold(version.digest, name, version.version) for name, record in records for version in record.versions)
