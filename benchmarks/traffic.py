"""Which task each request asks for, by Punica's laws of popularity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LAWS = ("identical", "distinct", "uniform", "zipf:1.5", "skewed")


def tasks_of(law: str, n_requests: int, n_tasks: int, rng: np.random.Generator) -> list[int]:
    """The task of each request, in order of arrival.

    identical: always the first; distinct: each after the last; uniform: all alike; zipf:a: p(i) ~ i ** -a; skewed: each
    1.5 times as often as the next.
    """
    ranks = np.arange(1, n_tasks + 1)
    weights: NDArray[np.floating[Any]]
    match law:
        case "identical":
            return [0] * n_requests
        case "distinct":
            return [index % n_tasks for index in range(n_requests)]
        case "uniform":
            weights = np.ones(n_tasks)
        case "skewed":
            weights = 1.5 ** -ranks.astype(float)
        case _:
            weights = ranks ** -float(law.removeprefix("zipf:"))
    return [int(i) for i in rng.choice(n_tasks, n_requests, p=weights / weights.sum())]


def popularity_of(masks: int, exponent: float) -> NDArray[np.float64]:
    """Zipf: the share of the traffic that each mask has, the hottest first."""
    weights = np.arange(1, masks + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()
