"""How a registry is: a thread looks after the backend, and whoever asks is told at once what it knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import monotonic

from smn_core.errors import Unavailable

EVERY_S = 1.0
SILENT_S = 3.0
"""A look that has not ended for so long means that the backend hangs."""


class ReadOnly(Unavailable):
    """The backend answers, and takes no change: it is full, read-only, or its disk is."""


@dataclass(frozen=True)
class Health:
    """Why a registry cannot be read, and why it cannot be written; None where it can."""

    away: str | None = None
    unwritable: str | None = None


class Watch:
    """Looks every second. `look` raises ReadOnly or Unavailable, or returns; it may hang.

    Args:
        look: reads and writes the backend for real.
        told: called with every change of the health, on the thread that noticed it.
    """

    def __init__(self, look: Callable[[], object], told: Callable[[Health], object]) -> None:
        self._look, self._told = look, told
        self._lock, self._stopping = Lock(), Event()
        self._found, self._said, self._began = Health(), Health(), monotonic()
        self._looking = False
        self._thread = Thread(target=self._run, name="smn-registry-watch", daemon=True)

    def start(self) -> None:
        """Look once, then go on looking in the thread. The first look may take as long as the backend lets it."""
        self._once()
        self._thread.start()

    def health(self) -> Health:
        """What the last look found; that the backend hangs, if the look under way has not ended in time."""
        with self._lock:
            silent_s = monotonic() - self._began if self._looking else 0.0
            found = self._found
        if silent_s < SILENT_S:
            return found
        hangs = f"the registry has not answered for {silent_s:.0f} s"
        return self._say(Health(hangs, hangs), f"the registry has not answered for {SILENT_S:g} s")

    def stop(self) -> None:
        """Do not look again. Does not wait for a look that hangs."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            self._once()

    def _once(self) -> None:
        with self._lock:
            self._began, self._looking = monotonic(), True
        try:
            self._look()
            found = Health()
        except ReadOnly as error:
            found = Health(None, str(error))
        except Exception as error:
            # Every exception, not Unavailable alone: if this thread died, its last word would stand for ever.
            found = Health(str(error), str(error))
        with self._lock:
            self._found, self._looking = found, False
        self._say(found)

    def _say(self, health: Health, reason: str | None = None) -> Health:
        """Tell of a change, once: a reason whose words alone differ is none."""
        with self._lock:
            now = (health.away is None, health.unwritable is None)
            before = (self._said.away is None, self._said.unwritable is None)
            self._said = health
        if now != before and not self._stopping.is_set():
            self._told(health if reason is None else Health(reason, reason))
        return health
