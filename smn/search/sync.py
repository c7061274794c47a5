"""A folder of photos -> a collection of the same: new and changed files are embedded, those that are gone removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smn.search.about import About
from smn.search.store import Rows, Stamp, Store
from smn.search.through import Through
from smn_core.answers import Row, Skipped
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.imageset import FolderSet
from smn_core.verbs.texts import as_text

TOGETHER = 256
"""Rows that are written together: what a killed run may lose."""


@dataclass
class Synced:
    """What a run did, in numbers of images, and those that cannot be read."""

    n_images: int
    unchanged: int = 0
    new: int = 0
    changed: int = 0
    removed: int = 0
    unreadable: list[Skipped] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As `smn index --json` tells it."""
        counts = {name: getattr(self, name) for name in ("n_images", "unchanged", "new", "changed", "removed")}
        return {"images": counts.pop("n_images"), **counts, "unreadable": [said.as_json() for said in self.unreadable]}


def sync(
    images: FolderSet,
    store: Store,
    through: Through,
    words: Mapping[str, str | None],
    *,
    where: str,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Synced:
    """Bring a collection up to date. Stopped at any moment and called again it ends with the same collection.

    Args:
        words: how the user named what images go through; the collection remembers it.
        where: the collection's place, as messages call it.
        on_batch: called with how many images more are done, at first with those that are in the collection already.

    Raises:
        OtherSpace: the collection's vectors are in another space.
        InvalidArgument: it shows another folder.
        InvalidData: no image can be read.
    """
    folder = as_text(str(images.root.resolve()))
    if store.about is not None:
        through.check_same(store.about, where)
        if store.about.folder != folder:
            raise InvalidArgument(f"{where} shows {store.about.folder}, not {folder}: make another collection for it")
    known = store.stamps() if store.about is not None else {}
    stamps = {name: _stamp(images.root / name) for name in images.names}
    done = Synced(len(stamps))
    stored = {as_text(name) for name in stamps}
    gone = [name for name in known if name not in stored]
    if gone:
        store.remove(gone)
        done.removed = len(gone)
    due = [name for name, stamp in stamps.items() if known.get(as_text(name)) != stamp]
    done.unchanged = len(stamps) - len(due)
    on_batch(done.unchanged)
    waiting: list[Row] = []

    def write() -> None:
        good = [row for row in waiting if row.vector is not None]
        names = [due[row.number] for row in good]
        paths = [as_text(name) for name in names]
        if good:
            vectors = np.stack([row.vector for row in good if row.vector is not None]).astype(np.float32)
            if store.about is None:
                kind = (through.model, through.fingerprint, good[0].digest, folder)
                store.begin(About(through.space, vectors.shape[1], *kind, words, through.backbone))
            store.put(Rows(paths, [stamps[name] for name in names], vectors), known.keys())
        bad = [Skipped(row.number, due[row.number], row.error or "") for row in waiting if row.vector is None]
        old = [as_text(said.name) for said in bad if as_text(said.name) in known]
        if old:  # what it showed before is not there any more
            store.remove(old)
        done.changed += sum(path in known for path in paths)
        done.new += sum(path not in known for path in paths)
        done.unreadable += bad
        on_batch(len(waiting))
        waiting.clear()

    with closing(through.embed(images.root / name for name in due)) as rows:
        try:
            for row in rows:
                waiting.append(row)
                if len(waiting) >= TOGETHER:
                    write()
        finally:
            write()
    if store.about is None:
        raise InvalidData(f"none of the {len(stamps)} images can be read; the first: {done.unreadable[0]}")
    store.finish()
    return done


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)
