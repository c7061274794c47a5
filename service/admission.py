"""How much may be in work at once, images or bytes of bodies: bounded before anything of a request is read.

It is shared fairly. Whoever comes first may take all of it. When somebody else comes, each has a share of it, the
limit divided by those who hold something or ask: who asks for no more than that is admitted, over the limit if need
be, up to twice the limit in all; who holds more waits until others have finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from smn_core.errors import SMNError


class QueueFull(SMNError):
    """As much as the server admits is in work already."""

    code = "queue_full"


class Admission:
    """Counts what is in work, by who asked for it, up to a limit. Lives on one event loop.

    Args:
        limit: admitted at once, of all together.
        what: the word for it in errors.
    """

    def __init__(self, limit: int, what: str = "images") -> None:
        self._limit, self._what = limit, what
        self._admitted = 0
        self._held: dict[str, int] = {}

    @property
    def admitted(self) -> int:
        """What is between admission and answer."""
        return self._admitted

    def take(self, who: str, n: int) -> None:
        """Take `n` places.

        Raises:
            QueueFull: there are not so many.
        """
        if n == 0:
            return
        total, held = self._admitted + n, self._held.get(who, 0) + n
        if total > self._limit and (held > self._share(who) or total > 2 * self._limit):
            raise QueueFull(f"{self._admitted} {self._what} are in work, at most {self._limit} are admitted")
        self._admitted, self._held[who] = total, held

    def give(self, who: str, n: int) -> None:
        """Give back places that were taken."""
        if n == 0:
            return
        self._admitted -= n
        self._held[who] -= n
        if self._held[who] == 0:
            del self._held[who]

    @contextmanager
    def admit(self, n: int, who: str = "") -> Iterator[None]:
        """Take `n` places inside the block.

        Raises:
            QueueFull: as `take`.
        """
        self.take(who, n)
        try:
            yield
        finally:
            self.give(who, n)

    def _share(self, who: str) -> int:
        others = len(self._held) - (who in self._held)
        return self._limit // (1 + others) if others else 0


class Claim:
    """What one request holds of a budget; grows while its body comes, and is given back as a whole."""

    def __init__(self, budget: Admission) -> None:
        self._budget = budget
        self._who, self._held = "", 0

    def reach(self, n_bytes: int, who: str) -> None:
        """Hold `n_bytes` in all.

        Raises:
            QueueFull: the budget has not so many.
        """
        if n_bytes > self._held:
            self._budget.take(who, n_bytes - self._held)
            self._who, self._held = who, n_bytes

    def release(self) -> None:
        """Give back everything."""
        if self._held:
            self._budget.give(self._who, self._held)
            self._held = 0
