"""Timing variants in turn (A B C A B C ...): what disturbs the machine then disturbs all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"process": time.process_time, "wall": time.perf_counter}
"""Seconds of this process's processor time, which neighbours disturb less, and of the wall."""


def clock_name(wall: bool, threads: int = 1) -> str:
    """The clock to take: processor time adds up the threads, so several are timed by the wall."""
    return "wall" if wall or threads > 1 else "process"


def seconds_in_turn(
    runs: Mapping[str, Callable[[], object]],
    turns: int,
    clock: Clock = time.perf_counter,
    warm_up: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[np.float64]]:
    """Seconds of every run, `turns` of each.

    Args:
        runs: what to time, by name.
        turns: how many count.
        clock: gives seconds.
        warm_up: turns before them, which do not count.
        wait: called before and after each run, within its time: waits for a device that runs on its own.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + turns):
        for name, run in runs.items():
            wait()
            began = clock()
            run()
            wait()
            if turn >= warm_up:
                taken[name].append(clock() - began)
    return {name: np.array(values) for name, values in taken.items()}
