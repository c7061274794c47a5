"""How long a call of a registry may take: the request's deadline, which the thread that works for it carries.

A deadline goes by the thread, so that no method has it among its arguments and none can forget to hand it on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

from smn_core.errors import Unavailable

LONGEST_S = 60.0
"""Where nobody set a deadline: a verb, a load of a mask."""

_ends: ContextVar[float] = ContextVar("ends", default=math.inf)


class TooLate(Unavailable):
    """The deadline came while the registry was waited for."""

    code = "deadline"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Calls in the block, on this thread, end within so many seconds from now."""
    token = _ends.set(min(_ends.get(), monotonic() + seconds))
    try:
        yield
    finally:
        _ends.reset(token)


def left_s(most_s: float = LONGEST_S) -> float:
    """Seconds that a wait may take now, at most `most_s`.

    Raises:
        TooLate: none.
    """
    left = min(_ends.get() - monotonic(), most_s)
    if left <= 0:
        raise TooLate("the registry was waited for until the deadline")
    return left
