"""What a registry can do besides, for backups: give out its records as they are kept, and take them back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from service.registry.base import Kind, Registry
from service.registry.record import Record


class WholeRegistry(Registry, Protocol):
    """Both backends are one."""

    def records(self, kind: Kind) -> Iterator[tuple[str, Record]]:
        """Every record, those of deleted names too, for a backup.

        Raises:
            Unavailable: one is damaged.
        """

    def store(self, data: bytes) -> str:
        """Store a blob that a record is to follow; its digest."""

    def put_back(self, kind: Kind, name: str, record: Record) -> None:
        """Restore a name whose blobs are there. It does nothing where the name has versions already.

        The next version's number is above all that the record and the registry know.
        """

    def put_over(self, kind: Kind, name: str, before: Record, after: Record) -> None:
        """Replace a record, in one atomic step, by one that has all its versions, and more, whose blobs are there.

        `before` is an empty record where the name was never used.

        Raises:
            Conflict: the record is not `before` any more: another last or current number, version, alias, or notes.
        """
