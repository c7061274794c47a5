"""The edges of a connection: how long a request's head may be, and what happens to a body that nobody reads."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import error_body

MAX_HEAD_BYTES = 64 * 1024
LINGER_S = 5.0


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a bound on request line and headers. What is not HTTP gets the one error body too."""

    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse("head_too_large", f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse("invalid_http", msg)

    def _refuse(self, code: str, message: str) -> None:
        body = orjson.dumps(error_body(400, code, message))
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


class Lingering:
    """Middleware: a client that is refused before its body was read sees why.

    Closing a connection on bytes that nobody read resets it, and the answer is lost on its way. So the answer goes at
    once, and the rest of the body is read and thrown away for a while before the connection may close.
    """

    def __init__(self, app: ASGIApp, linger_s: float = LINGER_S) -> None:
        self._app, self._linger_s = app, linger_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _announces_body(scope):
            await self._app(scope, receive, send)
            return
        unread = True

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and bool(message.get("more_body"))
            return message

        async def sending(message: Message) -> None:
            if unread and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                try:
                    async with asyncio.timeout(self._linger_s):
                        while unread:
                            await receiving()
                except TimeoutError:
                    pass
                except asyncio.CancelledError:  # the server ends; the answer itself has been sent
                    if (task := asyncio.current_task()) is not None:
                        task.uncancel()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, receiving, sending)


def _announces_body(scope: Scope) -> bool:
    """Whether a body is on its way. A client that sent `Expect: 100-continue` sends none after a refusal."""
    headers: Any = Headers(scope=scope)
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return has_body and "expect" not in headers
