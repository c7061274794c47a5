"""Real servers under the files of deployment."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
sys.path.insert(0, str(Path(__file__).parent))

from served import ServerProcess, Theta


@pytest.fixture(scope="session")
def theta():
    return Theta()


@pytest.fixture(scope="session")
def flags(theta, tmp_path_factory):
    """The flags of `smn serve` for theta."""
    return theta.save(tmp_path_factory.mktemp("theta"))


@pytest.fixture(scope="session")
def real(flags, tmp_path_factory):
    """A real server process."""
    folder = tmp_path_factory.mktemp("real")
    with ServerProcess([*flags, "--registry", folder / "registry", "--slots", "4"], folder) as server:
        yield server
