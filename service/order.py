"""Which image goes next: fair between those who ask, and for each of them fair between masks.

Both by start-time fair queueing (Goyal et al., 1996), one inside the other. Within a line, the images of one who asks,
`tag = max(now, last tag of the mask + 1)` where now is the tag of the newest image taken: an image of a quiet mask is
tagged with the present, the n-th waiting image of a flood n places into the future. Between lines it is the same, with
a start for each line that moves on by one with every image taken of it. So a flood waits for itself, whoever sends it
through whatever masks; where nobody floods it is first come, first served.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

Place = tuple[float, int]
"""(tag, arrival) of a row: its place in its line."""


@runtime_checkable
class Waiting(Protocol):
    """What the order asks of a job: its mask, and whether its rows are still wanted."""

    mask: str | None
    cancelled: bool


J = TypeVar("J", bound=Waiting)
Row = tuple[float, int, J, int]
"""(tag, arrival, job, row of the job)"""


@dataclass
class Line(Generic[J]):
    """The rows of one who asks, a queue for each mask."""

    start: float
    queues: dict[str | None, deque[Row[J]]] = field(default_factory=dict)
    last_tag: dict[str | None, float] = field(default_factory=dict)
    now: float = 0.0

    @property
    def arrival(self) -> int:
        """Of the row that goes next."""
        return min(queue[0][:2] for queue in self.queues.values())[1]

    def heads(self) -> list[tuple[Place, str | None]]:
        """A heap of the masks by their first rows."""
        heads = [(queue[0][:2], mask) for mask, queue in self.queues.items()]
        heapq.heapify(heads)
        return heads


class Order(Generic[J]):
    """Rows that wait. Its caller holds a lock."""

    def __init__(self) -> None:
        self._lines: dict[str, Line[J]] = {}
        self._now = 0.0
        self._last_tag = 0.0
        self._arrivals = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def rows(self) -> Iterator[Row[J]]:
        """All rows that wait."""
        for line in self._lines.values():
            for queue in line.queues.values():
                yield from queue

    def put(self, who: str, job: J, n_rows: int, places: Sequence[Place]) -> Sequence[Place]:
        """Let the rows of a job wait, at these places of an earlier pass or at the end; returns their places."""
        # A line that emptied is forgotten; the places of its rows are not: a second pass goes before what is new.
        line = self._lines.setdefault(who, Line(self._now, now=self._last_tag))
        queue = line.queues.setdefault(job.mask, deque())
        self._waiting += n_rows
        if places:
            for row, place in enumerate(places):
                insort(queue, (*place, job, row), key=_place_of)
            return places
        tag = max(line.now, line.last_tag.get(job.mask, -1.0) + 1)
        places = [(tag + row, self._arrivals + row) for row in range(n_rows)]
        queue.extend((*place, job, row) for row, place in enumerate(places))
        self._arrivals += n_rows
        line.last_tag[job.mask] = tag + n_rows - 1
        self._last_tag = max(self._last_tag, tag + n_rows - 1)
        return places

    def take(self, most: int, capacity: int) -> list[Row[J]]:
        """The next rows, of at most `capacity` masks beside the root; rows of cancelled jobs are dropped on the way."""
        lines = [(line.start, line.arrival, who, line.heads()) for who, line in self._lines.items()]
        heapq.heapify(lines)
        taken: list[Row[J]] = []
        masks: set[str | None] = set()
        while lines and len(taken) < most:
            _, _, who, heads = heapq.heappop(lines)
            line = self._lines[who]
            row = self._take_of(line, heads, masks, capacity)
            if row is not None:
                taken.append(row)
                self._now = max(self._now, line.start)
                line.start += 1
            if not line.queues:
                del self._lines[who]
            elif heads:
                heapq.heappush(lines, (line.start, heads[0][0][1], who, heads))
        return taken

    def _take_of(
        self, line: Line[J], heads: list[tuple[Place, str | None]], masks: set[str | None], capacity: int
    ) -> Row[J] | None:
        """The next row of a line; None where all that is left needs one mask too many."""
        while heads:
            _, mask = heapq.heappop(heads)
            if mask is not None and mask not in masks and len(masks - {None}) >= capacity:
                continue
            queue = line.queues[mask]
            row = queue.popleft()
            self._waiting -= 1
            if queue:
                heapq.heappush(heads, (queue[0][:2], mask))
            else:
                del line.queues[mask]
            if not row[2].cancelled:
                masks.add(mask)
                line.now = max(line.now, row[0])
                return row
        return None


def _place_of(row: Row[J]) -> Place:
    return row[:2]
