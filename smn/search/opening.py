"""A place -> the collection that is there."""

from __future__ import annotations

import os
import tempfile
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path

from smn.search.about import About
from smn.search.places import Place, place_of
from smn.search.store import Store, locked
from smn_core.errors import InvalidArgument, InvalidData


def open_store(where: str | Path | Place, key: str | None = None) -> Store:
    """The collection of a place, which may not be there yet.

    Args:
        key: of a Qdrant server.

    Raises:
        InvalidArgument: no collection can be there, or a library is missing.
        InvalidData: something else is there, or it is damaged.
        Unavailable: a server cannot be reached.
    """
    place = where if isinstance(where, Place) else place_of(where)
    place.check()
    if place.path is None:
        if place.form.startswith("qdrant"):
            from smn.search.qdrant import QdrantStore

            return QdrantStore(place, key)
        from smn.search.postgres import PostgresStore

        return PostgresStore(place)
    if place.form == ".lance":
        from smn.search.lance import LanceStore

        return LanceStore(place.path)
    if place.form == ".faiss":
        from smn.search.faiss import FaissStore

        return FaissStore(place.path)
    from smn.search.parquet import ParquetStore

    return ParquetStore(place.path)


def open_made(where: str | Path | Place, key: str | None = None) -> tuple[Store, About]:
    """A collection that is there, and what it says of itself.

    Raises:
        InvalidArgument, InvalidData, Unavailable: as `open_store`; or there is none.
    """
    place = where if isinstance(where, Place) else place_of(where)
    place.check()
    if place.path is not None and not place.path.exists():
        raise InvalidArgument(f"{place} does not exist: make it with smn index")
    store = open_store(place, key)
    if store.about is None:
        store.close()
        raise InvalidData(f"{place} is no collection: make one with smn index")
    return store, store.about


def alone(place: Place) -> AbstractContextManager[None]:
    """Be the only process that writes a collection; of Qdrant, which has no locks, the only one of this user here.

    Raises:
        Conflict: another process writes it.
    """
    if place.path is not None:
        return locked(place.path)
    if place.form.startswith("qdrant"):
        called = f"smn-{os.getuid()}-{sha256(str(place).encode()).hexdigest()[:16]}"
        return locked(Path(tempfile.gettempdir()) / called, str(place))
    from smn.search.postgres import alone as alone_in_postgres

    return alone_in_postgres(place)
