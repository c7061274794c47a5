"""Small things that the tests of the registry share."""

import time
from pathlib import Path

FINGERPRINT = "0123456789abcdef" * 4
ROOT = Path(__file__).parents[3]


def eventually(condition, within_s=5.0):
    """Wait until a condition holds; the condition's value."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.001)
    return value
