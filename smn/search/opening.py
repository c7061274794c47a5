"""A path -> the collection that is there, by its suffix."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from smn.search.about import About
from smn.search.store import Store
from smn_core.errors import InvalidArgument, InvalidData

FORMS = {".lance": "lancedb", ".parquet": "pyarrow"}
"""The suffixes of collections, and the library that each needs; both come with the extra `search`."""


def check_form(path: Path) -> None:
    """Raise InvalidArgument unless a collection can be kept under this name, here."""
    if path.suffix not in FORMS:
        raise InvalidArgument(f"{path}: a collection is a path that ends with {' or '.join(FORMS)}")
    library = FORMS[path.suffix]
    if importlib.util.find_spec(library) is None:
        raise InvalidArgument(
            f"{path.suffix} needs {library}, of the extra search: uv pip install '.[search]' in a clone"
        )
    if not path.parent.is_dir():
        raise InvalidArgument(f"cannot write {path}: No such folder as {path.parent}")


def open_store(path: Path) -> Store:
    """The collection of a path, which may not be there yet.

    Raises:
        InvalidArgument: no collection can have that name, or a library is missing.
        InvalidData: something else is there, or it is damaged.
    """
    check_form(path)
    if path.suffix == ".lance":
        from smn.search.lance import LanceStore

        return LanceStore(path)
    from smn.search.parquet import ParquetStore

    return ParquetStore(path)


def open_made(path: Path) -> tuple[Store, About]:
    """A collection that is there, and what it says of itself.

    Raises:
        InvalidArgument, InvalidData: as `open_store`; or there is none.
    """
    check_form(path)
    if not path.exists():
        raise InvalidArgument(f"{path} does not exist: make it with smn index")
    store = open_store(path)
    if store.about is None:
        raise InvalidData(f"{path} is no collection: make one with smn index")
    return store, store.about
