"""What a registry is: names -> versions -> digests -> immutable blobs. It has two backends, which pass the same tests.

Every method is synchronous, thread-safe and safe with several processes on one registry. `resolve`, `entry` and `names`
answer from memory or a few `stat` calls and may run on an event loop; everything that moves a blob or writes belongs in
a worker thread.
"""

from __future__ import annotations

import bisect
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from service.registry.watch import Health
from smn_core.errors import Conflict, InvalidArgument, NotFound, Unavailable
from smn_core.names import check_name
from smn_core.tensorfile import DIGEST

Kind = Literal["masks", "cascades"]
KINDS: tuple[Kind, ...] = ("masks", "cascades")
CASCADE = "cascade:"
"""The start of a reference to a cascade, where a reference may be to a mask or a cascade."""
ALIAS = re.compile(r"(?!v[0-9]+$)(?!sha256$)[a-z][a-z0-9-]{0,31}")
GRACE_S = 3600.0
"""How old an unreferenced blob must be before `collect` deletes it: an upload writes its blob before its name."""
NEIGHBOURS = 50
"""How many names before and after an unknown one are compared with it."""


@dataclass(frozen=True)
class Hold:
    """The version of a mask that a cascade version is tied to: only this one cannot be deleted."""

    digest: str
    name: str
    version: int


@dataclass(frozen=True)
class Version:
    """One version of a name. Numbers count up from 1 and are never used again; `uploaded` is UTC, ISO 8601.

    `vectors` says what makes its vectors (smn_core/vectors.py), None where the record is older than that. `parent` is
    the digest of the mask that it is coded against. `holds` are the masks of a cascade, or the parent of a mask. A
    cascade that was uploaded before there were holds has `needs`, the digests alone, and is tied to whatever version
    has them. `notes` are what people wrote beside it, a JSON object as text: they are no part of what it is, so
    versions compare without them.
    """

    version: int
    digest: str
    bytes: int
    uploaded: str
    vectors: str | None = None
    parent: str | None = None
    holds: tuple[Hold, ...] = ()
    needs: tuple[str, ...] = ()
    notes: str | None = field(default=None, compare=False)

    def hold_of(self, digest: str) -> Hold | None:
        """Where a mask that this version holds was, by its digest."""
        return next((hold for hold in self.holds if hold.digest == digest), None)


@dataclass(frozen=True)
class Entry:
    """A name with all its versions, oldest first, the current one, and the versions that its aliases mean."""

    name: str
    current: Version
    versions: tuple[Version, ...]
    aliases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """What a reference meant when it was resolved; `vectors` as in `Version`."""

    name: str
    version: int
    digest: str
    vectors: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Published:
    """The version an upload became; `created` is False where its digest was the current one already."""

    version: Version
    created: bool


@dataclass(frozen=True)
class Finding:
    """Something wrong in a registry: of which record or blob, what, and whether it has been mended."""

    what: str
    wrong: str
    mended: bool


class StillNeeded(Conflict):
    """A mask that cascades or children hold. The message names those of `users` that `visible` begins the name of."""

    def __init__(self, name: str, users: Sequence[str], visible: str = "") -> None:
        seen = sorted(user for user in users if user.startswith(visible))
        told = f"is needed by: {', '.join(seen)}; delete what needs it first" if seen else "is needed by another name"
        super().__init__(f"mask {name} {told}")
        self.name, self.users = name, tuple(sorted(users))


@runtime_checkable
class Registry(Protocol):
    """Masks and cascades of one backbone.

    Raises, all methods:
        InvalidArgument: not a name, reference or digest.
        NotFound: no such name, version or digest (near misses in the message).
        Unavailable: the backend is away; the message says why.
    """

    def resolve(self, kind: Kind, reference: str) -> Resolved:
        """`name` (its current version), `name@3`, `name@alias`, `name@sha256:...` (a version of this name with it)."""

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
        holds: Sequence[Hold] = (),
        needs: Sequence[str] = (),
        vectors: str | None = None,
        parent: str | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> Published:
        """Store the blob, then make it the current version of a name in one atomic step.

        The digest of the current version again: nothing changes. An older digest again: a new version. `holds` are the
        versions of masks that a cascade is made of, or that a mask is coded against: each must be there, and cannot be
        deleted while the version that holds it is. `needs` are digests alone, as cascades had them before there were
        holds: some mask's version must have each, and the last that has it cannot be deleted. `vectors` and `parent`
        are kept with the version. After Unavailable the change may have been made; the same call again tells.

        Raises:
            PreconditionFailed: the current digest is not `if_match`; or `if_absent` and the name exists.
            MissingMasks: what `holds` or `needs` name is not in the registry (any more).
        """

    def set_current(self, kind: Kind, name: str, version: int) -> Version:
        """Roll back or forward."""

    def delete(self, kind: Kind, name: str, version: int | None = None) -> None:
        """Delete one version, or the name with all of them. Version numbers are not used again even then.

        Raises:
            Conflict: the current version alone, or one that an alias means.
            StillNeeded: a cascade or a child holds it, or needs a digest that nothing else would have.
        """

    def set_alias(self, kind: Kind, name: str, alias: str, version: int) -> bool:
        """Let `name@alias` mean a version from now on. Returns whether the alias is new.

        Raises:
            Conflict: a server that shares the registry cannot read a record with aliases.
        """

    def delete_alias(self, kind: Kind, name: str, alias: str) -> None:
        """Forget an alias; NotFound where the name does not have it."""

    def set_notes(self, kind: Kind, name: str, version: int, notes: str | None) -> None:
        """Keep a JSON object, as text, beside a version, in place of what was there; None removes it.

        Raises:
            Conflict: a server that shares the registry cannot read a record with notes.
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

    def watch(self, told: Callable[[Health], object]) -> None:
        """Begin what a server does and a verb does not: look after the backend, tell others which record format it
        reads, remove what a crash left. `told` is called, on any thread, when the health changes.
        """

    def health(self) -> Health:
        """What is known of the backend, at once: it asks nothing and waits for nothing. Needs `watch`."""

    def epoch(self) -> str:
        """16 hex digits that a registry gets when it begins, also after all of it was lost."""

    def examine(self, *, mend: bool) -> Sequence[Finding]:
        """Read every record and blob; what is wrong, and with `mend` whether it is right now."""

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
    """`name` -> (name, None); `name@3` -> (name, 3); `name@alias`, `name@sha256:...` -> (name, alias or digest).

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
    if ALIAS.fullmatch(pin):
        return name, pin
    raise InvalidArgument(
        f"{reference[:200]!r} is not a reference: write name, name@3, name@alias or name@sha256:<64 hex digits>"
    )


def check_alias(alias: str) -> None:
    """Raise InvalidArgument unless `alias` may be one: it can be taken for no version and no digest."""
    if not ALIAS.fullmatch(alias):
        raise InvalidArgument(
            f"{alias[:80]!r} is not an alias: [a-z][a-z0-9-]*, at most 32 characters, not sha256 nor v with digits"
        )


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
    """The version of a name that a pin means: None the current one, a number, an alias, a digest.

    Of several versions with a digest, the current one goes first, then the newest.

    Raises:
        NotFound: no such version.
    """
    if pin is None:
        return entry.current
    if isinstance(pin, str) and not DIGEST.fullmatch(pin):
        if pin not in entry.aliases:
            known = f"it has {', '.join(sorted(entry.aliases))}" if entry.aliases else "it has none"
            raise NotFound(f"{kind[:-1]} {entry.name} has no alias {pin}: {known}")
        pin = entry.aliases[pin]
    for version in (entry.current, *reversed(entry.versions)):
        if pin in (version.version, version.digest):
            return version
    if isinstance(pin, str):
        raise NotFound(f"{kind[:-1]} {entry.name} has no version with the digest {pin}")
    last = ", ".join(str(version.version) for version in entry.versions[-5:])
    some = "the newest are " if len(entry.versions) > 5 else ""
    raise NotFound(f"{kind[:-1]} {entry.name} has no version {pin}: {some or 'it has '}{last}")


def absent(kind: Kind, name: str, names: Sequence[str]) -> NotFound:
    """The error for a name that is not there; `names` are those that are, in order."""
    return NotFound(f"no {kind[:-1]} is named {name}{near_misses(name, names)}")


def near_misses(name: str, names: Sequence[str]) -> str:
    """`; near it: a, b`, or nothing. It compares with neighbours in the order alone, however many names there are."""
    place = bisect.bisect_left(names, name)
    around = names[max(0, place - NEIGHBOURS) : place + NEIGHBOURS]
    near = difflib.get_close_matches(name, around, n=3, cutoff=0.5)
    return f"; near it: {', '.join(near)}" if near else ""
