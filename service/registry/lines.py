"""Clients of one Redis, each lent to one call at a time, so that a call can be ended without the others.

A socket's timeout bounds one read of it. A value that comes byte by byte passes every such timeout: here a call that is
over its time loses its connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Timer
from time import monotonic
from typing import TypeVar

from redis import exceptions

from service.registry.connect import ERRORS, Client, Moved, disconnect, unavailable
from service.registry.within import TooLate, left_s
from smn_core.errors import Unavailable

T = TypeVar("T")
COMMAND_TIMEOUT_S = 10.0
"""Enough for one blob to be sent or received."""
FAILOVER_S = 2.0
"""How long a change is tried again where Redis is a replica: a failover puts another server behind the address."""


class Lines:
    """The idle clients, and how a call gets one."""

    def __init__(self, connect: Callable[[float], Client]) -> None:
        self._connect = connect
        self._idle: list[Client] = []
        self._lock, self._closed = Lock(), Event()

    def close(self) -> None:
        """Calls from now on raise; those under way end as they would have."""
        self._closed.set()
        self.drop()

    def drop(self) -> None:
        """Forget the connections that no call uses now."""
        with self._lock:
            idle, self._idle = self._idle, []
        for client in idle:
            _close(client)

    def call(self, work: Callable[[Client], T], moved: Callable[[], object] = lambda: None) -> T:
        """What `work` makes of a client, within the deadline.

        Where Redis turns out to be a replica, the connection is dropped and the work, which has then changed nothing,
        is done again on a new one; `moved` is called once that has found another server.

        Raises:
            TooLate: the deadline came.
            Unavailable: Redis is away or refuses.
        """
        ends = monotonic() + left_s(COMMAND_TIMEOUT_S)
        until, pause_s, dropped = min(ends, monotonic() + FAILOVER_S), 0.02, False
        while True:
            try:
                with self._lent(ends) as client, unavailable():
                    done = work(client)
            except Moved:
                self.drop()
                dropped = True
                if monotonic() + pause_s > until or self._closed.wait(pause_s):
                    raise
                pause_s *= 2
            else:
                if dropped:
                    moved()
                return done

    @contextmanager
    def _lent(self, ends: float) -> Iterator[Client]:
        if self._closed.is_set():
            raise Unavailable("the registry is closed")
        with self._lock:
            client = self._idle.pop() if self._idle else None
        if client is None:
            with unavailable():
                client = self._connect(COMMAND_TIMEOUT_S)  # a cluster connects here, the others do not
        late = Event()

        def break_off() -> None:
            late.set()
            disconnect(client)

        timer = Timer(max(0.0, ends - monotonic()), break_off)
        timer.daemon = True
        timer.start()
        sound = False
        try:
            yield client
            sound = True
        except Moved:
            raise
        except Exception as error:
            if late.is_set():  # whatever redis-py says where its connection goes while it reads
                raise TooLate("the registry did not answer in time") from error
            sound = isinstance(error, Unavailable) and isinstance(error.__cause__, exceptions.ResponseError)
            raise
        finally:
            timer.cancel()
            if sound and not late.is_set() and not self._closed.is_set():
                with self._lock:
                    self._idle.append(client)
            else:
                _close(client)


def _close(client: Client) -> None:
    try:
        client.close()
    except ERRORS:
        return  # a lost connection is as good as closed
