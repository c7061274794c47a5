"""What a client may cost before the application hears of it: bytes of heads and trailers, seconds, connections.

uvicorn bounds none of these. Its protocol is extended here, and `Connections` looks at all of them once a second.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import error_body

MAX_HEAD_BYTES = 64 * 1024
MAX_PIPELINED = 16
"""Requests of one connection that may wait for the answer to an earlier one."""
STALLED_S = 30.0
SLOWEST_BYTES_S = 1024
"""A client that takes its answer slower than this for STALLED_S is dropped."""
REASONS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Phase(enum.Enum):
    """What the parser waits for."""

    BETWEEN = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


@dataclass
class Connections:
    """All connections of a process, and what they may take.

    Args:
        most: connections at once. One more closes the one that has waited longest, of the address that has most.
        head_s: seconds for a request's head, and of a new connection until its first byte.
        body_s: seconds for a request's body: more than a handler, which ends with the request's deadline, and lingers.
    """

    most: int
    head_s: float
    body_s: float
    open: set[BoundedProtocol] = field(default_factory=set)

    def add(self, new: BoundedProtocol) -> None:
        self.open.add(new)
        if len(self.open) > self.most:
            self._make_room(new)

    def sweep(self, now: float) -> None:
        """Close what has taken too long; called once a second, which is cheaper than timers for every request."""
        for connection in list(self.open):
            connection.end_if_late(now)

    def _make_room(self, new: BoundedProtocol) -> None:
        alive = [one for one in self.open if not one.transport.is_closing()]
        if len(alive) <= self.most:
            return
        waiting = [one for one in alive if one is not new and one.waits]
        if not waiting:
            new.refuse(503, "too_many_connections", f"all {self.most} connections are at work")
            return
        of_address = Counter(one.address for one in alive)
        max(waiting, key=lambda one: (of_address[one.address], -one.since)).transport.abort()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds. What is not HTTP gets the one error body too. An upgrade is never made.

    Args:
        bounds: shared by all connections of the process.
    """

    since = 0.0
    """When the phase began, on the loop's clock."""
    _phase = Phase.BETWEEN
    _head_bytes = 0
    _body_bytes = 0
    _framing_bytes = 0
    """Of a chunked body: sizes, extensions and trailers, in all and since its last byte."""
    _framing_since = 0
    _n_messages = 0
    _muted = False
    _unsent: tuple[int, float] | None = None

    def __init__(self, *args: Any, bounds: Connections, **more: Any) -> None:
        super().__init__(*args, **more)
        self._bounds = bounds

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def waits(self) -> bool:
        """Whether no request is in work: closing the connection costs nobody an answer."""
        return self._phase is not Phase.BODY and (self.cycle is None or self.cycle.response_complete)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.since = self.loop.time()
        self._bounds.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._bounds.open.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        # A head is fed in parts that the bound can stop, whatever the size of the socket's buffer.
        while len(data) > MAX_HEAD_BYTES and self._phase is not Phase.BODY and not self.transport.is_closing():
            self._feed(data[:MAX_HEAD_BYTES])
            data = data[MAX_HEAD_BYTES:]
        if not self.transport.is_closing():
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        began, message, body_bytes = self._phase, self._n_messages, self._body_bytes
        if began is Phase.BETWEEN:
            self._begin_head()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offered:
            self._go_on_without_upgrade(data[offered.args[0] :])
            return
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._phase is Phase.HEAD and began is not Phase.BODY:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                said = f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes"
                self.refuse(400, "head_too_large", said)
        elif self._phase is began is Phase.BODY and self._n_messages == message:
            # Else these are the end of one body and the beginning of another, of a client that was answered early.
            self._count_framing(len(data), self._body_bytes - body_bytes)

    def _count_framing(self, fed: int, of_body: int) -> None:
        self._framing_bytes += fed - of_body
        self._framing_since = 0 if of_body else self._framing_since + fed
        if self._framing_since > MAX_HEAD_BYTES or self._framing_bytes > MAX_HEAD_BYTES + self._body_bytes:
            said = f"the trailers, or the parts of the body that are none of it, take more than {MAX_HEAD_BYTES} bytes"
            self.refuse(400, "framing_too_large", said)

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read the body of a request that offered an upgrade: nobody took it up, so it is an ordinary request.

        The parser has left HTTP at the end of the head. Another one is told the length of the body and reads on.
        """
        lengths = [pair for pair in self.headers if pair[0] in (b"content-length", b"transfer-encoding")]
        self._muted = True
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in lengths))
        self._muted = False
        self._phase = Phase.BODY
        self._feed(b"\r\n" + rest)

    def on_message_begin(self) -> None:
        if not self._muted:
            self._begin_head()
            super().on_message_begin()

    def _begin_head(self) -> None:
        if self._phase is not Phase.HEAD:
            self._phase, self._head_bytes, self.since = Phase.HEAD, 0, self.loop.time()

    def on_url(self, url: bytes) -> None:
        if not self._muted:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is Phase.HEAD and not self._muted:  # else it is a trailer, which nobody reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._phase is Phase.BODY:  # of a head that was told to the parser of a refused upgrade
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests wait for an answer")
        self._phase, self.since = Phase.BODY, self.loop.time()
        self._body_bytes = self._framing_bytes = self._framing_since = 0
        self._n_messages += 1
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # the body comes yet
            return
        self._phase, self.since = Phase.BETWEEN, self.loop.time()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, "invalid_http", msg)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Say why, where nothing else is being said, and close."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its handler waits for a body that is not read any more
            self.cycle.message_event.set()
        body = orjson.dumps(error_body(status, code, message))
        lines = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        lines += ["retry-after: 1"] if status == 503 else []
        self.transport.write("\r\n".join([*lines, "connection: close", "", ""]).encode() + body)
        self.transport.close()

    def end_if_late(self, now: float) -> None:
        """Close the connection if its phase has taken too long, or if its client does not take the answer."""
        if self._is_stalled(now):
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif self._phase is Phase.BODY:
            if now - self.since > self._bounds.body_s:
                self.refuse(408, "body_timeout", f"the body did not come within {self._bounds.body_s:g} s")
        elif (
            self.waits and now - self.since > self._bounds.head_s and (self._phase is Phase.HEAD or self.cycle is None)
        ):
            # Without a word: nobody has asked for anything. What is silent after an answer has uvicorn's own timer.
            self.transport.close()

    def _is_stalled(self, now: float) -> bool:
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self._unsent = None
            return False
        if self._unsent is None:
            self._unsent = unsent, now
            return False
        before, since = self._unsent
        if now - since < STALLED_S:
            return False
        self._unsent = unsent, now
        return before - unsent < SLOWEST_BYTES_S * (now - since)
