"""The socket: uvicorn with a drain. After SIGTERM or ctrl-C new work gets 503, and work in flight is answered."""

from __future__ import annotations

import asyncio
import errno
import functools
import resource
import socket
import threading
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from service.connection import LINGER_S
from service.protocol import BoundedProtocol, Connections
from service.server import Server
from smn_core.errors import InvalidArgument

STOPPED_S = 0.05
"""Time for requests that the engine has just failed to send their 503."""
FILES_KEPT = 64
"""Fewest descriptors that connections leave to everything else: files, Redis, decoders."""


class DrainingServer(uvicorn.Server):
    """Answers what is in flight before it closes; a second signal ends it at once."""

    def __init__(
        self, config: uvicorn.Config, app: FastAPI, connections: Connections, answers: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._app, self._connections, self._answers = app, connections, answers
        self._server: Server = app.state.server
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        # uvicorn's own lifespan would turn an error of the start into a traceback and exit code 3.
        async with self._app.router.lifespan_context(self._app):
            await super().serve(sockets)  # type: ignore[arg-type]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._answers()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            self._connections.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin the drain. uvicorn's own handler would close the socket at once and raise the signal again."""
        if self._server.draining:
            self.force_exit = self.should_exit = True
            return
        self._server.draining = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._drain()))

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._server.settings.drain_s
        while self._server.in_flight and loop.time() < end:
            await asyncio.sleep(0.01)
        if self._server.in_flight:  # the time is over: what still waits for the engine gets 503 while that can be sent
            await asyncio.to_thread(self._server.embedder.stop)
            await asyncio.sleep(STOPPED_S)
            self._server.give_up()
        # The time that is left is for answers on their way: at least a second, or none would get through.
        self.config.timeout_graceful_shutdown = max(1, round(end - loop.time()))
        self.should_exit = True


def run(app: FastAPI, answers: Callable[[int], object] = lambda _: None) -> None:
    """Serve until a signal, as the settings of the application's server say; returns once everything is answered.

    `answers` is called with the port once requests are answered: it is bound, and what is to be resident is loaded.

    Raises:
        InvalidArgument: the port is in use.
        OSError: the address is not this machine's.
        SMNError: what is to be preloaded cannot be.
    """
    server: Server = app.state.server
    settings = server.settings
    connections = Connections(
        connections_within(settings.max_connections), settings.head_s, settings.timeout_ms / 1e3 + LINGER_S + 1
    )
    config = uvicorn.Config(
        app,
        http=functools.partial(BoundedProtocol, bounds=connections),  # type: ignore[arg-type]  # it is only called
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,
        log_config=None,
        lifespan="off",
        access_log=False,
        server_header=False,
    )
    assert threading.current_thread() is threading.main_thread()
    with bind(settings.host, settings.port, config.backlog) as listening:
        bound = listening.getsockname()[1]
        structlog.get_logger("smn.server").info("listening", host=settings.host, port=bound)
        DrainingServer(config, app, connections, lambda: answers(bound)).run([listening])


def connections_within(most: int) -> int:
    """So many connections, or as many as the limit of open files has room for beside everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft - max(FILES_KEPT, soft // 4)))


def bind(host: str, port: int, backlog: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InvalidArgument: the port is in use.
        OSError: the address is not this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()  # every address of the machine: IPv4's too
        return socket.create_server((host, port), family=family, backlog=backlog, dualstack_ipv6=both)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise InvalidArgument(
            f"port {port} of {host} is in use: choose another with --port, 0 for a free one"
        ) from error
