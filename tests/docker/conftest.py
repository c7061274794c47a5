"""The repository's images and its Compose file on a real Docker engine. Not part of `make test`: `make test-docker`."""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parent))

from engine import Engine, missing


@pytest.fixture(scope="session")
def engine():
    """An engine that this session started, and removes."""
    if reason := missing():
        pytest.skip(reason)
    engine = Engine(Path(tempfile.mkdtemp(prefix="smn-docker-")))
    try:
        engine.start(apart=False)
        yield engine
    finally:
        engine.remove()
