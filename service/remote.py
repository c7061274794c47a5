"""`smn embed --server`: a set of images through a server into a file; a stopped run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from service.client import Client
from smn_core.answers import Row, Skipped
from smn_core.errors import InvalidData
from smn_core.imageset import ArraySet, FolderSet, ImageSet
from smn_core.verbs.journal import Journal, Stamp
from smn_core.verbs.vectorfile import Table, named

TOGETHER = 64
"""Rows that are written down together."""


def embed_set(
    client: Client,
    images: ImageSet,
    through: Mapping[str, str | None],
    dimensions: int | None,
    journal: Journal,
    *,
    file: Path,
    strict: bool = False,
    on_batch: Callable[[int], None] = lambda _: None,
) -> None:
    """Embed the images that a journal does not have yet, and write them into it.

    Args:
        through: `mask`, `cascade` and `mode`, as `Client.embed` takes them.
        file: the folder or file of the set; an array's images have its size and time.
        strict: an unreadable image ends it. Otherwise its reason is written down.
        on_batch: called with how many images more are done, at first with those that were done before.

    Raises:
        OtherSpace: the server answers in another space than the journal's rows have.
        ServerError, ServerAway: as the client. What was embedded stays in the journal.
    """
    stamps = {name: _stamp(images, name, file) for name in images.names}
    left = [i for i, name in enumerate(images.names) if not journal.is_done(name, stamps[name])]
    on_batch(len(images.names) - len(left))
    facts = _facts(client)
    rows = client.embed_each(
        (_source(images, i) for i in left),
        through.get("mask"),
        cascade=through.get("cascade"),
        mode=through.get("mode"),
        dimensions=dimensions,
        space=journal.collection.space,
        strict=strict,
    )
    waiting: list[Row] = []

    def write() -> None:
        good = [row for row in waiting if row.vector is not None]
        if good:
            first = good[0]
            assert first.vector is not None
            journal.admit(first.space, len(first.vector), facts | {"digest": first.digest})
        names = [images.names[left[row.number]] for row in good]
        journal.add(names, [stamps[name] for name in names], [row.vector for row in good if row.vector is not None])
        for row in waiting:
            if row.vector is None:
                name = images.names[left[row.number]]
                journal.skip(name, stamps[name], row.error or "")
        on_batch(len(waiting))
        waiting.clear()

    with closing(rows) as coming:
        try:
            for row in coming:
                waiting.append(row)
                if len(waiting) >= TOGETHER:
                    write()
        finally:
            write()


def table_of(images: ImageSet, journal: Journal) -> tuple[Table, list[Skipped]]:
    """What a finished journal holds of a set, in the set's order; and the images without a row, with the reasons.

    Raises:
        InvalidData: no image could be read.
    """
    kept = [(i, journal.entries[name]) for i, name in enumerate(images.names)]
    skipped = [Skipped(i, images.names[i], entry.reason) for i, entry in kept if entry.row is None]
    numbers = [i for i, entry in kept if entry.row is not None]
    if not numbers or journal.width is None:
        raise InvalidData(f"none of the {len(images.names)} images can be read; the first: {skipped[0]}")
    order = np.array([entry.row for _, entry in kept if entry.row is not None], np.int64)
    paths, labels = named(images, numbers)
    return Table(journal.raw, journal.width, order, paths, labels, journal.collection.space or ""), skipped


def _facts(client: Client) -> dict[str, Any]:
    info = client.info()
    return {key: info.get(key) for key in ("model", "fingerprint", "preprocess")}


def _source(images: ImageSet, index: int) -> Any:
    if isinstance(images, FolderSet):
        return images.root / images.names[index]
    assert isinstance(images, ArraySet)
    return images.pixels[index]


def _stamp(images: ImageSet, name: str, file: Path) -> Stamp:
    path = images.root / name if isinstance(images, FolderSet) else file
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)
