"""A request's body as the application meets it: its claim on the budget of bytes, and its end if nobody reads it."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import Admission, Claim

LINGER_S = 5.0


class Bodies:
    """Middleware: the bytes of a body are claimed before they are read, and given back when the request has ended.

    A client that is refused before its body was read sees why.

    Closing a connection on bytes that nobody read resets it, and the answer is lost on its way. So the answer goes at
    once, and the rest of the body is read and thrown away for a while before the connection may close.
    """

    def __init__(self, app: ASGIApp, budget: Admission, linger_s: float = LINGER_S) -> None:
        self._app, self._budget, self._linger_s = app, budget, linger_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _announces_body(headers := Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        claim = scope.setdefault("state", {})["claim"] = Claim(self._budget)
        try:
            if "expect" in headers:  # a client that waits to be asked sends nothing after a refusal
                await self._app(scope, receive, send)
            else:
                await self._linger(scope, receive, send)
        finally:
            claim.release()

    async def _linger(self, scope: Scope, receive: Receive, send: Send) -> None:
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


def _announces_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
