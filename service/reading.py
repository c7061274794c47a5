"""How the bytes of a body come in: bounded, and claimed before they are read; refused by the head where it suffices."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request

from service.admission import Claim
from service.errors import Rejected


class TooLarge(Rejected):
    def __init__(self, limit: int) -> None:
        super().__init__(413, "body_too_large", f"the body is larger than {limit} bytes")


def media_type(request: Request) -> str:
    """The content type without its parameters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body; refused as soon as it is known to be too large.

    Raises:
        Rejected: 413; 415, a body that is compressed.
        QueueFull: the bodies of all requests together are too large.
    """
    return bytes(await read_buffer(request, limit_bytes))


async def read_buffer(request: Request, limit_bytes: int) -> bytearray:
    """As `read_body`, without the last copy of it, which would hold up the event loop."""
    grow = begin(request, limit_bytes)
    body = bytearray()
    async for part in request.stream():
        grow(len(part))
        body += part
    return body


def begin(request: Request, limit_bytes: int) -> Callable[[int], None]:
    """Refuse a body by its head, or claim the bytes that it announces; returns what is to be called with each part's.

    Raises:
        as `read_body`; so does what is returned.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        said = f"content encoding {encoding[:64]!r}: send the body as it is"
        raise Rejected(415, "unsupported_encoding", said, "Content-Encoding")
    claim: Claim | None = getattr(request.state, "claim", None)
    who, seen = request.state.caller.who, 0

    def reach(size: int) -> None:
        if size > limit_bytes:
            raise TooLarge(limit_bytes)
        if claim is not None:  # without one no body was announced, and none comes
            claim.reach(size, who)

    def grow(n_bytes: int) -> None:
        nonlocal seen
        seen += n_bytes
        reach(seen)

    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        reach(int(declared[:20]))
    return grow
