"""What both clients share of sending: when to send again, how long to wait, what an answer that never came is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import httpx2

from service.answers import ServerAway, one_line
from service.calls import Call, hide_user

RETRIED = (429, 503)
ATTEMPTS = 5
LONGEST_WAIT_S = 10.0
IN_FLIGHT = 4
"""Requests on their way at once while many images are embedded."""
NO_SOCKS = "a SOCKS proxy needs the package socksio"


def wait_s(response: httpx2.Response, attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None where no further attempt should be made."""
    if response.status_code not in RETRIED or attempt + 1 >= ATTEMPTS:
        return None
    after = response.headers.get("retry-after", "")
    told = after.isascii() and after.isdigit()
    return min(float(after[:9]) if told else 0.1 * 2**attempt, LONGEST_WAIT_S)


def may_resend(call: Call, error: httpx2.RequestError, *, reused: bool) -> bool:
    """Whether a call should be sent once more: its connection was an old one that the server had just closed.

    Not an upload with a guard: had the first one been made, the second would be refused.
    """
    lost = isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError)
    guarded = not {"If-Match", "If-None-Match"}.isdisjoint(call.headers or ())
    return reused and lost and not guarded


def away(url: httpx2.URL, error: Exception) -> ServerAway:
    return ServerAway(f"no answer from {hide_user(str(url))}: {one_line(str(error)) or type(error).__name__}")


def as_method(method: Callable[..., Any], talk: Callable[..., Any]) -> None:
    """Give a method the name, the words and the parameters of its talk."""
    wraps(talk)(method)
    signature = inspect.signature(talk)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    answer = str(signature.return_annotation).removeprefix("Talk[").removesuffix("]")
    told = signature.replace(parameters=[own, *signature.parameters.values()], return_annotation=answer)
    method.__signature__ = told  # type: ignore[attr-defined]
