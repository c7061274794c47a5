"""What a run says on stderr while it goes: a first word, bars on a terminal, lines in a log, how to go on after a stop.

It imports nothing slow, because its first word comes before the slow imports are done.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from smn_core.verbs.stderr import note

OF_SIGNAL = 128
"""Exit codes of what a signal stopped begin here: 130 for ctrl-C, 143 for SIGTERM."""
FIRST_WORD_S = 2.0
"""A refusal that comes sooner stays the one line on stderr. With it a user hears something within 5 seconds."""

EVERY_S = 10.0
"""Between two lines of a log lie so many seconds at least."""

Advance = Callable[[int], None]
"""Called with how many more are done."""

Tell = Callable[[str], None]
"""Called with a line for the user."""

Clock = Callable[[], float]
"""Seconds, from any start."""

Bar = Callable[[str, int], AbstractContextManager[Advance]]
"""Takes what is counted and how many there are."""


class Stopped(KeyboardInterrupt):
    """A run ended because a signal asked it to. Its checkpoint holds step `step` of `total`."""

    def __init__(self, number: int, step: int, total: int) -> None:
        super().__init__(f"stopped after step {step} of {total}, with a checkpoint")
        self.number, self.step, self.total = number, step, total


class StoppedMidway(KeyboardInterrupt):
    """A signal ended what has several runs, after they could begin."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped; what is finished is kept, and what had begun left a checkpoint")
        self.number = number


class Terminated(KeyboardInterrupt):
    """SIGTERM came where it ends the work as ctrl-C does."""

    number = int(signal.SIGTERM)


def number_of(stopped: KeyboardInterrupt) -> int:
    """The number of the signal that stopped something: ctrl-C's where nothing says another."""
    return stopped.number if isinstance(stopped, Stopped | StoppedMidway | Terminated) else int(signal.SIGINT)


@contextmanager
def stopping_midway() -> Iterator[None]:
    """A stop in the block is one of several runs that could begin.

    Raises:
        StoppedMidway: ctrl-C or SIGTERM.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise StoppedMidway(number_of(stopped)) from stopped


@contextmanager
def stopping_at_sigterm() -> Iterator[None]:
    """In the block SIGTERM raises `Terminated`; once, so that what a stop leaves can be written.

    In another thread than the main one, where Python sets no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def holding_stops() -> Iterator[None]:
    """Ctrl-C and SIGTERM in the block are heard at its end.

    For a block that forks: Python runs callbacks around a fork, and an exception in one of them is lost. In another
    thread than the main one, which hears no signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for heard in came:
        signal.raise_signal(heard)


@contextmanager
def first_word(text: str) -> Iterator[None]:
    """Say `text` if the block takes longer than `FIRST_WORD_S`."""
    timer = threading.Timer(FIRST_WORD_S, note, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Pace:
    """Tells when a line of a log is due: at once, and `EVERY_S` after each line."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._next = clock()

    def is_due(self) -> bool:
        """Whether a line is due. If so, the next one is due later."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + EVERY_S
        return True


@contextmanager
def count(what: str, total: int) -> Iterator[Advance]:
    """Count on stderr: a bar on a terminal, elsewhere a line at the first call and then at most one each `EVERY_S`."""
    if sys.stderr.isatty():
        from smn_core.verbs.show import progress

        with progress(what, total) as advance:
            yield advance
        return
    pace, done = Pace(), 0

    def tell(n: int) -> None:
        nonlocal done
        done += n
        if pace.is_due():
            note(f"{what}: {done} of {total}")

    yield tell


@contextmanager
def count_silently(_: str, __: int) -> Iterator[Advance]:
    """A `Bar` that shows nothing."""
    yield lambda _: None


def say_how_to_go_on(words: Sequence[str], stopped: KeyboardInterrupt) -> int:
    """Say, in the last line, the command that goes on after a stop, and return the exit code of the stopped one.

    What had not begun is started again by the same command: an earlier run of its name is still there.
    """
    if isinstance(stopped, Stopped | StoppedMidway):
        note(f"{stopped}. This goes on:")
        words = [*(word for word in words if word not in ("--overwrite", "--resume")), "--resume"]
    else:
        note("stopped before the first step. This begins again:")
    print(shlex.join(words), file=sys.stderr, flush=True)  # as it was typed, or it would name other files
    return OF_SIGNAL + number_of(stopped)
