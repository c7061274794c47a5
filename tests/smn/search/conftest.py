"""A place for a collection of each form, with the server that it needs."""

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import postgresserver

LIBRARIES = {
    "lance": "lancedb",
    "parquet": "pyarrow",
    "faiss": "faiss",
    "qdrant": "qdrant_client",
    "postgresql": "pgvector",
}
NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def postgres():
    if reason := postgresserver.why_not():
        pytest.skip(reason)
    with postgresserver.running() as url:
        yield url


@pytest.fixture(scope="session")
def qdrant():
    from qdrantserver import StandInQdrant

    with StandInQdrant() as stand_in:
        yield stand_in


@pytest.fixture
def place(request, tmp_path):
    """`place("faiss")`: where a new collection of that form can be, as a user writes it."""

    def where(form):
        if importlib.util.find_spec(LIBRARIES[form]) is None:
            pytest.skip(f"{LIBRARIES[form]} is not installed")
        name = f"photos{next(NUMBERS)}"
        if form == "qdrant":
            return f"{request.getfixturevalue('qdrant').url}/{name}"
        if form == "postgresql":
            return f"{request.getfixturevalue('postgres')}/{name}"
        return str(tmp_path / f"{name}.{form}")

    return where
