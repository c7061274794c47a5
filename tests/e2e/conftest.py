"""Real servers, a real Redis."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
sys.path.insert(0, str(Path(__file__).parent))

from served import Theta

from benchmarks.redis_server import RedisServer


@pytest.fixture(scope="session")
def theta():
    return Theta()


@pytest.fixture(scope="session")
def flags(theta, tmp_path_factory):
    """The flags of `smn serve` for theta."""
    return theta.save(tmp_path_factory.mktemp("theta"))


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        yield server
