"""Which space the vectors of a mask or cascade are in, and what a request may expect of it.

A version's record says what makes its vectors. Records of before that, and the default mode of a cascade, are told by
the files, which are read once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query, Request

from service.errors import Rejected
from service.registry.base import Kind, Registry, Resolved, Version, blob_of_version, pick
from smn_core.backbone import Backbone
from smn_core.cascade.cascade import Cascade
from smn_core.cascade.file import check_fits, parse_cascade
from smn_core.errors import NotFound, SMNError
from smn_core.maskfile import parse_mask, with_bits
from smn_core.spaces import SpaceNames, shape_space
from smn_core.vectors import vectors_of_cascade, vectors_of_mask

HEADER, EXPECTED = "X-SMN-Space", "X-SMN-Expect-Space"
MOST_KNOWN = 65_536
"""Digests whose facts are kept: 200 bytes each."""
MOST_SHOWN = 200
"""Characters of a client's text that an error repeats."""
SpaceQuery = Annotated[
    str | None, Query(description="The space that the vectors must be in: 412 `other_space` where they would not be.")
]
"""The parameter `space` of every route that gives vectors; `X-SMN-Expect-Space` says the same."""


@dataclass(frozen=True)
class Facts:
    """What a file says beside its record: what makes its vectors, and of a cascade the default mode."""

    vectors: str
    mode: str | None = None


class Spaces:
    """Names spaces of one backbone. Safe on any thread; what reads a file belongs in a worker thread."""

    def __init__(self, backbone: Backbone, registry: Registry) -> None:
        self._backbone, self._registry, self._names = backbone, registry, SpaceNames(backbone)
        self._known: OrderedDict[str, Facts] = OrderedDict()
        self._lock = threading.Lock()
        self.root = self._names.name(None)

    def name(self, vectors: str | None) -> str:
        """The id of what makes the vectors, without a shape; None is the untouched backbone."""
        return self._names.name(vectors)

    def told(self, of: Version | Resolved) -> str | None:
        """What makes the vectors of a version, where that is known without reading a file."""
        facts = self._recall(of.digest)
        return of.vectors or (facts.vectors if facts is not None else None)

    def vectors(self, kind: Kind, of: Version | Resolved) -> str:
        """What makes the vectors of a version. May read its file, and of an old cascade those of its masks.

        Raises:
            Unavailable, InvalidMask, InvalidCascade, WrongBackbone: the file cannot be read.
        """
        return self.told(of) or self._read(kind, of).vectors

    def default_if_known(self, kind: Kind, of: Version | Resolved) -> str | None:
        """As `default`, or None where a file would have to be read."""
        if kind == "masks":
            vectors = self.told(of)
            return self.name(vectors) if vectors is not None else None
        facts = self._recall(of.digest)
        return shape_space(self.name(facts.vectors), mode=facts.mode) if facts is not None else None

    def default(self, kind: Kind, of: Version | Resolved) -> str:
        """The space of a version's vectors in their default shape: whole, of floats, of a cascade in its default mode.

        Raises:
            Unavailable, InvalidMask, InvalidCascade, WrongBackbone: as `vectors`.
        """
        known = self.default_if_known(kind, of)
        if known is None:
            self._read(kind, of)
            known = self.default_if_known(kind, of)
        assert known is not None
        return known

    def warn(self, kind: Kind, name: str, before: Version | None, space: str) -> list[str]:
        """What an answer says of a name that meant a version `before`, and from now on gives vectors in `space`."""
        if before is None:
            return []
        try:
            same = self.default(kind, before) == space
        except SMNError as error:
            return [f"whether vectors embedded through {name}@{before.version} are in this space is not known: {error}"]
        return [] if same else [f"vectors embedded through {name}@{before.version} are in another space"]

    def warn_of_move(self, kind: Kind, name: str, version: int, alias: str | None = None) -> list[str]:
        """As `warn`, before a name, or an alias of it, is made to mean another of its versions.

        Nothing where there is no such name or version: the change itself says so.
        """
        try:
            entry = self._registry.entry(kind, name)
            if alias is not None and alias not in entry.aliases:
                return []
            before = pick(kind, entry, alias)
            space = self.default(kind, pick(kind, entry, version))
        except SMNError:
            return []
        return self.warn(kind, name, before, space)

    def current(self, kind: Kind, name: str) -> Version | None:
        """The version that a name means; None where there is no such name."""
        try:
            return self._registry.entry(kind, name).current
        except NotFound:
            return None

    def keep(self, digest: str, facts: Facts) -> None:
        """Remember what a file says, when it was read for another reason."""
        with self._lock:
            self._known[digest] = facts
            self._known.move_to_end(digest)
            while len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)

    def of_cascade(self, cascade: Cascade) -> str:
        """What makes the vectors of a cascade whose record does not say it; reads the files of its masks.

        Raises:
            Unavailable, InvalidMask, WrongBackbone: one of them cannot be read.
        """
        return vectors_of_cascade(cascade, [self._of_mask(digest) for digest in cascade.masks])

    def _of_mask(self, digest: str) -> str:
        facts = self._recall(digest)
        if facts is None:
            blob = blob_of_version(self._registry, digest)
            mask = parse_mask(blob, self._backbone.layout, lambda parent: blob_of_version(self._registry, parent))
            facts = Facts(vectors_of_mask(with_bits(mask, self._backbone)))
            self.keep(digest, facts)
        return facts.vectors

    def _read(self, kind: Kind, of: Version | Resolved) -> Facts:
        if kind == "masks":
            return Facts(self._of_mask(of.digest))
        cascade = parse_cascade(blob_of_version(self._registry, of.digest))
        check_fits(cascade, self._backbone)
        facts = Facts(of.vectors or self.of_cascade(cascade), cascade.mode)
        self.keep(of.digest, facts)
        return facts

    def _recall(self, digest: str) -> Facts | None:
        with self._lock:
            if digest in self._known:
                self._known.move_to_end(digest)
            return self._known.get(digest)


def expected_of(request: Request, asked: str | None) -> str | None:
    """The space that a request expects: `space` in its query, or the header, or neither.

    Raises:
        Rejected: 400, two that are not equal.
    """
    header = request.headers.get(EXPECTED)
    if asked is not None and header is not None and asked != header:
        raise Rejected(400, "two_spaces", f"space and {EXPECTED} are not equal: send one of them", "space")
    return asked if asked is not None else header


def require_space(space: str, expected: str | None) -> None:
    """Raise 412 unless the vectors of a request are in the space that it expects."""
    if expected is not None and expected != space:
        message = f"the vectors would be in the space {space}, not in {expected[:MOST_SHOWN]} as this request expects"
        raise Rejected(412, "other_space", message, "space")
