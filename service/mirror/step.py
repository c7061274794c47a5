"""One turn of a mirror: what the first place has and the second lacks is brought there; nothing else unless told."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from service.answers import ServerError
from service.mirror.ofobjects import ObjectSide
from service.mirror.ofregistry import RegistrySide
from service.mirror.ofserver import ServerSide, with_needs
from service.mirror.parents import Expected, parents_first
from service.mirror.side import Side, files_of
from service.objects import is_store
from service.registry.base import KINDS, Kind, Version
from service.registry.record import Record
from smn_core.errors import Conflict, InvalidArgument, MissingMasks, NotFound

REFUSALS = (400, 404, 409, 413, 422)
"""What a server answers where one file cannot be taken, and others can."""


@dataclass
class Turn:
    """What a turn did: names that were brought in step, those that were so, deletions, and what stands against it."""

    brought: list[str] = field(default_factory=list)
    in_step: int = 0
    files: int = 0
    bytes: int = 0
    deleted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def open_side(place: str, key: str | None = None, flag: str = "a key") -> Side:
    """A place as a user writes it: a folder, redis://, http(s)://, or the URL of a store.

    Args:
        flag: how the user gives the key of a server.

    Raises:
        InvalidArgument: it is none of these.
    """
    if re.match(r"https?://", place):
        return ServerSide(place, key, flag)
    if key is not None:
        raise InvalidArgument(f"{place}: a key is for a server, http:// or https://")
    return ObjectSide(place) if is_store(place) else RegistrySide(place)


def take_turn(source: Side, dest: Side, *, delete: bool = False, say: Callable[[str], object] = lambda _: None) -> Turn:
    """Bring the second place in step with the first. Stopped at any moment and called again it ends with the same.

    Masks go before cascades, parents before what is coded against them, files before names. What cannot be brought is
    refused name by name, and the rest goes on.

    Args:
        delete: delete what the second place has and the first does not, of the first one's backbones.
        say: called with a line on each name that was brought or deleted.

    Raises:
        NotFound: the first place has nothing; so nothing was deleted at the second either.
        SMNError: a place is away.
    """
    turn, backbones = Turn(), source.backbones()
    here = {(b, kind): _alive(source.records(b, kind)) for b in backbones for kind in KINDS}
    if not any(here.values()):
        raise NotFound(f"{source} has no mask and no cascade: nothing is mirrored, and nothing deleted")
    for backbone in backbones:
        for kind in KINDS:
            there, coming = dest.records(backbone, kind), here[backbone, kind]
            expected = Expected(there, coming)
            for name in parents_first(coming):
                before, wanted = there.get(name), coming[name]
                try:
                    if kind == "masks" and not isinstance(dest, ServerSide):  # a server sees to it itself
                        expected.require_parents(name, dest.lacks(before, wanted))
                    _bring(source, dest, backbone, kind, name, before, wanted, turn, say)
                    continue
                except Conflict as error:
                    turn.refused.append(str(error))
                except ServerError as error:
                    if error.status not in REFUSALS:
                        raise
                    turn.refused.append(f"{kind[:-1]} {name}: {error}")
                expected.refuse(name, wanted)
        if delete:
            for kind in reversed(KINDS):  # cascades hold masks
                _clean(dest, backbone, kind, here[backbone, kind], turn, say)
            dest.tidy(backbone)
    return turn


def _bring(
    source: Side,
    dest: Side,
    backbone: str,
    kind: Kind,
    name: str,
    before: Record | None,
    wanted: Record,
    turn: Turn,
    say: Callable[[str], object],
) -> None:
    fetched: dict[int, Mapping[str, bytes]] = {}
    alone = isinstance(dest, ServerSide)  # it takes one file, and has its parent

    def fetch(version: Version) -> Mapping[str, bytes]:
        if version.version not in fetched:
            digests = (version.digest,) if alone else files_of(version)
            found = {digest: source.file(backbone, kind, name, version, digest) for digest in digests}
            turn.files += len(found)
            turn.bytes += sum(map(len, found.values()))
            fetched[version.version] = found
        return fetched[version.version]

    alive = before if before is not None and before.versions else None
    if not dest.is_behind(alive, wanted):
        turn.in_step += 1
        return
    if kind == "cascades":
        if isinstance(source, ServerSide):
            told = {v.version: with_needs(kind, v, fetch(v)[v.digest]) for v in dest.lacks(alive, wanted)}
            wanted = replace(wanted, versions=tuple(told.get(v.version, v) for v in wanted.versions))
        _require_masks(dest, backbone, name, dest.lacks(alive, wanted))
    dest.take(backbone, kind, name, alive if isinstance(dest, ServerSide) else before, wanted, fetch)
    turn.brought.append(f"{kind[:-1]} {name}")
    say(f"{kind[:-1]} {name}: version {wanted.current} is current, {len(wanted.versions)} in all")


def _require_masks(dest: Side, backbone: str, name: str, versions: Sequence[Version]) -> None:
    """Raise MissingMasks unless the second place has the masks of these versions of a cascade."""
    masks = _alive(dest.records(backbone, "masks"))
    there = {version.digest for record in masks.values() for version in record.versions}
    needed = {digest for v in versions for digest in (*v.needs, *(hold.digest for hold in v.holds))}
    if missing := sorted(needed - there):
        raise MissingMasks(f"cascade {name} needs masks that the second place does not have: {', '.join(missing)}")


def _clean(
    dest: Side, backbone: str, kind: Kind, wanted: dict[str, Record], turn: Turn, say: Callable[[str], object]
) -> None:
    there = _alive(dest.records(backbone, kind))
    for name in reversed(parents_first(there)):
        before = there[name]
        extra = dest.extra(before, wanted.get(name))
        if name in wanted and not extra.versions and not extra.aliases:
            continue
        try:
            dest.remove(backbone, kind, name, extra if name in wanted else None)
        except Conflict as error:
            turn.refused.append(str(error))
            continue
        parts = [f"@{number}" for number in extra.versions] + [f"@{alias}" for alias in extra.aliases]
        gone = [f"{name}{part}" for part in parts] if name in wanted else [name]
        turn.deleted += [f"{kind[:-1]} {one}" for one in gone]
        say(f"{kind[:-1]} {', '.join(gone)}: deleted")


def _alive(records: dict[str, Record]) -> dict[str, Record]:
    return {name: record for name, record in records.items() if record.versions}
