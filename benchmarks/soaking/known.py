"""What is known while a soak runs: what names may mean, when Redis was away, what came of the requests."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

LAG_S = 15.0
"""After which a change at one server must be seen at another one; `benchmarks.seen` measures it more narrowly."""
TICK_S, STALLED_S = 0.5, 10.0
"""A machine that stops for so long stops clients and servers alike, and deadlines pass meanwhile."""
LATE_S = 60.0
"""How long a change without an answer may still come true."""


@dataclass
class Change:
    """A change of what a name means: when it was sent, to which server, and when it was acknowledged."""

    digest: str
    server: int
    began: float
    ended: float | None = None


@dataclass
class Name:
    """What one client knows of a name that it alone changes: versions that must be there, and what it means."""

    versions: dict[int, str] = field(default_factory=dict)
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=200))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def allowed(self, server: int, began: float, ended: float, lag_s: float) -> set[str]:
        """Digests that the name may have meant at this server at some time of a request."""
        found = set()
        for change in reversed(self.changes):
            if change.began > ended:
                continue
            found.add(change.digest)
            lag = 0 if change.server == server else lag_s
            if change.ended is not None and change.ended + lag <= began:
                break
        return found | {c.digest for c in self.changes if c.ended is None and began - LATE_S < c.began <= ended}


@dataclass
class Seen:
    """What came of the requests: statuses by kind, answers that were compared, and every fault in words."""

    answers: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    away: int = 0
    stalled: int = 0
    faults: list[str] = field(default_factory=list)
    wrong: int = 0
    latencies_s: list[float] = field(default_factory=list)

    def fault(self, told: str) -> None:
        if len(self.faults) < 200:
            self.faults.append(told)


class Away:
    """The times when Redis is away: from its end until every server is ready again."""

    def __init__(self) -> None:
        self.spans: list[list[float]] = []

    def begin(self) -> None:
        self.spans.append([time.monotonic(), float("inf")])

    def end(self) -> None:
        self.spans[-1][1] = time.monotonic()

    def covers(self, began: float, ended: float) -> bool:
        """Whether it was away at some time of a request."""
        return any(start <= ended and began <= end for start, end in self.spans)


class Stalls:
    """The times when this process itself was kept from running, and so perhaps the servers: a tick that came late."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self._last: float | None = None

    def covers(self, began: float, ended: float) -> bool:
        """Whether there was one at some time of a request; also one that the tick has not noticed yet."""
        noticed = any(start <= ended and began <= end for start, end in self.spans)
        return noticed or (self._last is not None and time.monotonic() - self._last > STALLED_S)

    async def notice(self) -> None:
        """Tick until it is cancelled."""
        try:
            while True:
                self._last = before = time.monotonic()
                await asyncio.sleep(TICK_S)
                if time.monotonic() - before > STALLED_S:
                    self.spans.append((before, time.monotonic()))
        finally:
            self._last = None


@dataclass
class Answer:
    """What a server answered, when, and which of them."""

    status: int
    headers: Any
    body: bytes
    began: float
    ended: float
    server: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Unanswered(Exception):
    """No answer, or a status that the kind of request may not get; it is noted already."""
