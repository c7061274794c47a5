"""The service on tiny backbones: in this process through ASGI, and as a real `smn serve`."""

import sys
from pathlib import Path

import pytest
import structlog
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))

from independent_client import IndependentClient
from served import ERROR_KEYS, ServerProcess, Theta

from service.app import create_app
from service.registry.directory import DirectoryRegistry
from service.settings import Settings


@pytest.fixture(autouse=True)
def _no_logs_after_a_test():
    """`smn serve` in this process sends its logs to a stdout that pytest closes."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def theta():
    return Theta()


@pytest.fixture
def make_app(theta, tmp_path):
    """`make_app(registry=..., of=..., tracer_provider=..., **settings)`: an application on a directory registry."""
    apps = []

    def make(registry=None, of=None, tracer_provider=None, **settings):
        backbone = (of or theta).backbone()
        registry = registry or DirectoryRegistry(tmp_path / "registry", backbone.fingerprint)
        app = create_app(Settings(**{"slots": 4, **settings}), backbone, registry, tracer_provider)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.state.server.close()


@pytest.fixture
def serve(make_app):
    """`serve(**as make_app)`: a client of an application that runs; its server is `client.app.state.server`."""
    clients = []

    def start(**given):
        client = TestClient(make_app(**given), raise_server_exceptions=False)
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve):
    return serve()


@pytest.fixture(scope="session")
def real(theta, tmp_path_factory):
    """A real server process, shared by the tests that need one: each uses mask names of its own."""
    folder = tmp_path_factory.mktemp("real")
    arguments = [*theta.save(folder), "--registry", folder / "registry", "--slots", "4", "--max-images", "8"]
    with ServerProcess(arguments, folder) as server:
        yield server


@pytest.fixture
def plain_client(real):
    return IndependentClient(real.url)


@pytest.fixture
def require_error():
    """`require_error(answer, status, code)`: the one error body, exactly; returns its message."""

    def check(answer, status, code=None):
        body = answer.json() if callable(answer.json) else answer.json
        assert set(body) == {"error"} and set(body["error"]) == ERROR_KEYS, body
        status_of = answer.status_code if hasattr(answer, "status_code") else answer.status
        assert status_of == status, (status_of, body)
        error = body["error"]
        assert all(isinstance(error[key], str) for key in ("message", "type", "code"))
        assert error["param"] is None or isinstance(error["param"], str)
        assert code is None or error["code"] == code, error
        return error["message"]

    return check
