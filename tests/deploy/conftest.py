"""Real servers under the files of deployment."""

import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
sys.path.insert(0, str(Path(__file__).parent))

from served import Theta

from service.app import create_app
from service.settings import Settings


@pytest.fixture(scope="session")
def theta():
    return Theta()


@pytest.fixture(scope="session")
def flags(theta, tmp_path_factory):
    """The flags of `smn serve` for theta."""
    return theta.save(tmp_path_factory.mktemp("theta"))


@pytest.fixture(scope="module")
def client(theta, tmp_path_factory):
    """A client of an application that runs."""
    app = create_app(Settings(registry=str(tmp_path_factory.mktemp("registry"))), theta.backbone())
    with TestClient(app) as client:
        yield client
