"""A registry, in a folder or in Redis, as one side of a mirror. Version numbers are kept."""

from __future__ import annotations

from service.mirror.side import Extra, Fetch, Numbered, checked, files_of, merged
from service.registry.base import Kind, Version
from service.registry.open import backbones_in, hide_user, open_registry
from service.registry.record import Record
from service.registry.whole import WholeRegistry
from smn_core.errors import NotFound, Unavailable


class RegistrySide(Numbered):
    """All backbones of a registry; each is opened when it is asked for."""

    def __init__(self, url_or_path: str) -> None:
        self._place = url_or_path
        self._open: dict[str, WholeRegistry] = {}

    def __str__(self) -> str:
        return hide_user(self._place)

    def backbones(self) -> list[str]:
        return backbones_in(self._place)

    def records(self, backbone: str, kind: Kind) -> dict[str, Record]:
        return dict(self._at(backbone).records(kind))

    def file(self, backbone: str, kind: Kind, name: str, version: Version, digest: str) -> bytes:
        return checked(self._at(backbone).blob(digest), digest, f"{kind[:-1]} {name}@{version.version}")

    def take(self, backbone: str, kind: Kind, name: str, before: Record | None, wanted: Record, fetch: Fetch) -> None:
        after = merged(kind, name, before, wanted)
        registry = self._at(backbone)
        for version in self.lacks(before, wanted):
            if not all(self._has(registry, digest) for digest in files_of(version)):
                for data in fetch(version).values():
                    registry.store(data)
        registry.put_over(kind, name, before or Record(), after)

    def remove(self, backbone: str, kind: Kind, name: str, extra: Extra | None) -> None:
        registry = self._at(backbone)
        if extra is None:
            registry.delete(kind, name)
            return
        for alias in extra.aliases:
            registry.delete_alias(kind, name, alias)
        for number in reversed(extra.versions):  # one may be coded against an older one
            registry.delete(kind, name, number)

    def tidy(self, backbone: str) -> None:
        """Nothing: `smn gc` does it, after its grace period."""

    def close(self) -> None:
        for registry in self._open.values():
            registry.close()

    def _at(self, backbone: str) -> WholeRegistry:
        if backbone not in self._open:
            opened = open_registry(self._place, backbone)
            self._open[backbone] = opened
            opened.check()
        return self._open[backbone]

    @staticmethod
    def _has(registry: WholeRegistry, digest: str) -> bool:
        """Whether a file is there already, of a run that was stopped; a damaged one is written again."""
        try:
            registry.blob(digest)
        except (NotFound, Unavailable):
            return False
        return True
