"""Powers, logarithms and chances as whole numbers: the same on every machine.

A logarithm is to the base 2, in steps of 1/64. A count or a sum of chances is in steps of 2^-24, `ONE` is 1. The
tables are computed with 40 decimal digits, so each entry is the whole number that is nearest to what it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

STEPS = 64
"""Steps of a logarithm in an octave."""
ONE = 1 << 24
MOST = 24 * STEPS
"""The largest logarithm of odds, up and down."""
DIGITS = 40


@dataclass(frozen=True)
class Tables:
    """What the loop looks up.

    Attributes:
        powers: `2^16 * 2^(k/64)` for k from 0 to 63.
        logarithms: `64 * log2(1 + m/256)` for m from 0 to 255.
        chances: `2^24 / (1 + 2^(-x/64))` for x from -MOST to MOST, at least 1 and at most 2^24 - 1.
    """

    powers: Int64[ndarray, "64"]
    logarithms: Int64[ndarray, "256"]
    chances: Int32[ndarray, "n"]


@cache
def make_tables() -> Tables:
    """Compute the tables, once: it takes 20 ms."""
    with localcontext() as context:
        context.prec = DIGITS
        two, ln_2 = Decimal(2), Decimal(2).ln()
        # 2^(x/64) for whole x is a product of two entries: Decimal's own powers take ten times as long.
        fraction = [two ** (Decimal(k) / STEPS) for k in range(STEPS)]
        powers = [_nearest(2**16 * power) for power in fraction]
        logarithms = [_nearest(STEPS * (1 + Decimal(m) / 256).ln() / ln_2) for m in range(256)]
        chances = [
            min(max(_nearest(ONE / (1 + fraction[-x % STEPS] * two ** (-x // STEPS))), 1), ONE - 1)
            for x in range(-MOST, MOST + 1)
        ]
    return Tables(np.array(powers, np.int64), np.array(logarithms, np.int64), np.array(chances, np.int32))


def _nearest(value: Decimal) -> int:
    return int(value.to_integral_value())
