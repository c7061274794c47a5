"""The time of `smn adapt`: one end for the whole command, and each part's share of what comes before it."""

from __future__ import annotations

from dataclasses import dataclass

from training.progress import Clock

LOOK, TIMING, ENDING = 0.08, 0.05, 0.32
"""Shares of the whole: the first look, the choice of numbers, and map, verdict and pictures at the end."""
LEARNING_STARTS_S = 2.0
"""What a run needs before its first step and after its last one, where nothing was measured yet."""


@dataclass(frozen=True)
class Budget:
    """`whole_s` seconds from `began` on, by `clock`."""

    whole_s: float
    began: float
    clock: Clock

    @property
    def spent_s(self) -> float:
        return self.clock() - self.began

    @property
    def left_s(self) -> float:
        """Until the end of the command; not below 0."""
        return max(0.0, self.whole_s - self.spent_s)

    @property
    def learning_until(self) -> float:
        """When learning ends, by the clock."""
        return self.began + (1 - ENDING) * self.whole_s

    @property
    def learning_left_s(self) -> float:
        return max(0.0, self.learning_until - self.clock())
