"""Both backends behind one fixture, other instances and processes on the same registry."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from registry_helpers import FINGERPRINT, ROOT

from benchmarks.redis_server import RedisServer
from service.registry.open import open_registry


class Peer:
    """A process that runs peer.py."""

    def __init__(self, place):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "peer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT)},
        )
        self.send(place, FINGERPRINT)
        self.receive()

    def send(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def receive(self):
        return json.loads(self.process.stdout.readline())

    def ask(self, *command):
        self.send(*command)
        return self.receive()

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["directory", "redis"])
def place(request, tmp_path):
    """The path or URL of a fresh registry."""
    if request.param == "directory":
        return str(tmp_path / "registry")
    server = request.getfixturevalue("redis_server")
    return request.getfixturevalue("fresh_redis")(server)


@pytest.fixture
def fresh_redis():
    """The URL of a server, emptied."""
    import redis

    def empty(server):
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        return server.url

    return empty


@pytest.fixture
def open_again(place):
    """`open_again(fingerprint=...)`: another instance on the same registry."""
    opened = []

    def open_one(fingerprint=FINGERPRINT, at=None):
        opened.append(open_registry(at or place, fingerprint))
        return opened[-1]

    yield open_one
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(open_again):
    return open_again()


@pytest.fixture
def start_peers(place):
    peers = []

    def start(n=1):
        peers.extend(Peer(place) for _ in range(n))
        return peers[-n:]

    yield start
    for peer in peers:
        peer.close()
