"""What a registry is: names -> versions -> digests -> immutable blobs. It has two backends, which pass the same tests.

Every method is synchronous, thread-safe and safe with several processes on one registry. `resolve`, `entry` and `names`
answer from memory or a few `stat` calls and may run on an event loop; everything that moves a blob or writes belongs in
a worker thread.
"""

from __future__ import annotations

import bisect
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from smn_core.errors import InvalidArgument, NotFound, Unavailable
from smn_core.names import check_name

Kind = Literal["masks", "cascades"]
KINDS: tuple[Kind, ...] = ("masks", "cascades")
CASCADE = "cascade:"
"""The start of a reference to a cascade, where a reference may be to a mask or a cascade."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NEIGHBOURS = 50
GRACE_S = 3600.0
"""How old an unreferenced blob must be before `collect` deletes it: an upload writes its blob before its name."""


@dataclass(frozen=True)
class Version:
    """One version of a name. Numbers count up from 1 and are never used again; `uploaded` is UTC, ISO 8601."""

    version: int
    digest: str
    bytes: int
    uploaded: str


@dataclass(frozen=True)
class Entry:
    """A name with all its versions, oldest first, and the current one."""

    name: str
    current: Version
    versions: tuple[Version, ...]


@dataclass(frozen=True)
class Resolved:
    """What a reference meant when it was resolved."""

    name: str
    version: int
    digest: str


@dataclass(frozen=True)
class Published:
    """The version an upload became; `created` is False where its digest was the current one already."""

    version: Version
    created: bool


@runtime_checkable
class Registry(Protocol):
    """Masks and cascades of one backbone.

    Raises, all methods:
        InvalidArgument: not a name, reference or digest.
        NotFound: no such name, version or digest (near misses in the message).
        Unavailable: the backend is away; the message says why.
    """

    def resolve(self, kind: Kind, reference: str) -> Resolved:
        """`name` (its current version), `name@3`, `name@sha256:...` (a version of this name with this digest)."""

    def entry(self, kind: Kind, name: str) -> Entry:
        """A name with its versions."""

    def names(self, kind: Kind, limit: int = 100, after: str = "") -> Sequence[Entry]:
        """Up to `limit` entries in order of names, those after `after`."""

    def blob(self, digest: str) -> bytes:
        """The bytes of a digest, checked against it; Unavailable where they are damaged (an upload mends them)."""

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
        """Store the blob, then make it the current version of a name in one atomic step.

        The digest of the current version again: nothing changes. An older digest again: a new version. `needs` are the
        digests of masks that a cascade is made of: a mask's version must hold each, and cannot be deleted while any
        version of the cascade is there. After Unavailable the change may have been made; the same call again tells.

        Raises:
            PreconditionFailed: the current digest is not `if_match`; or `if_absent` and the name exists.
            MissingMasks: a digest of `needs` is not in the registry (any more).
        """

    def set_current(self, kind: Kind, name: str, version: int) -> Version:
        """Roll back or forward."""

    def delete(self, kind: Kind, name: str, version: int | None = None) -> None:
        """Delete one version, or the name with all of them. Version numbers are not used again even then.

        Raises:
            Conflict: the current version alone; or a cascade still needs a digest that nothing else would hold.
        """

    def collect(self, grace_s: float = GRACE_S) -> Sequence[str]:
        """Delete blobs that no version refers to; returns their digests.

        Only those that were uploaded, or lost their last version, longer ago than the grace period.
        """

    def listen(self, heard: Callable[[], object]) -> None:
        """Call `heard`, on any thread, whenever a name may have changed.

        A directory tells of this process's own changes alone: others' are noticed when somebody asks.
        """

    def check(self) -> None:
        """Raise Unavailable unless the backend answers now."""

    def close(self) -> None:
        """Stop following changes; give connections back."""


def blob_of_version(registry: Registry, digest: str) -> bytes:
    """The bytes of a digest that a version names. For any other digest there is `Registry.blob`.

    Raises:
        Unavailable: as `blob`; also where the blob is missing, because then the registry is damaged.
    """
    try:
        return registry.blob(digest)
    except NotFound as error:
        raise Unavailable(f"{digest} is missing from the registry: upload the file again") from error


def parse_reference(reference: str) -> tuple[str, int | str | None]:
    """`name` -> (name, None), `name@3` -> (name, 3), `name@sha256:...` -> (name, digest).

    Raises:
        InvalidArgument: not a reference.
    """
    name, at, pin = reference.partition("@")
    check_name(name)
    if not at:
        return name, None
    if DIGEST.fullmatch(pin):
        return name, pin
    if re.fullmatch(r"[1-9][0-9]{0,8}", pin):
        return name, int(pin)
    raise InvalidArgument(f"{reference!r} is not a reference: write name, name@3 or name@sha256:<64 hex digits>")


def check_digest(digest: str) -> None:
    """Raise InvalidArgument unless `digest` is `sha256:` and 64 hex digits."""
    if not DIGEST.fullmatch(digest):
        raise InvalidArgument(f"{digest[:160]!r} is not a digest: write sha256:<64 hex digits>")


def check_needs(needs: Sequence[str]) -> tuple[str, ...]:
    """The digests, each once. Raises InvalidArgument if one is malformed."""
    for digest in needs:
        check_digest(digest)
    return tuple(dict.fromkeys(needs))


def pick(kind: Kind, entry: Entry, pin: int | str | None) -> Version:
    """The version of a name that a pin means: None the current one, a number, a digest (current first, then newest).

    Raises:
        NotFound: no such version.
    """
    if pin is None:
        return entry.current
    for version in (entry.current, *reversed(entry.versions)):
        if pin in (version.version, version.digest):
            return version
    if isinstance(pin, str):
        raise NotFound(f"{kind[:-1]} {entry.name} has no version with the digest {pin}")
    last = ", ".join(str(version.version) for version in entry.versions[-5:])
    some = "the newest are " if len(entry.versions) > 5 else ""
    raise NotFound(f"{kind[:-1]} {entry.name} has no version {pin}: {some or 'it has '}{last}")


def absent(kind: Kind, name: str, names: Sequence[str]) -> NotFound:
    """The error for a name that is not there."""
    return NotFound(f"no {kind[:-1]} is named {name}{near_misses(name, names)}")


def near_misses(name: str, names: Sequence[str]) -> str:
    """`; near it: a, b`, or nothing. It compares with neighbours in the order alone, however many names there are."""
    place = bisect.bisect_left(names, name)
    around = names[max(0, place - NEIGHBOURS) : place + NEIGHBOURS]
    near = difflib.get_close_matches(name, around, n=3, cutoff=0.5)
    return f"; near it: {', '.join(near)}" if near else ""
