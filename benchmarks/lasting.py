"""Questions that take an hour or a million requests: what servers still hold then. A table of docs/performance.md."""

from __future__ import annotations

from benchmarks.asked import Asked, Table

LASTING = Table(
    "Servers over time",
    "Wrong answers, faults and growth of real servers under mixed traffic; what one client does to another",
    ("question",),
    (
        Asked(
            "Mixed and hostile traffic, Redis killed: wrong answers", "hour", "soak", "wrong answers", most=0,
            short="wrong answers, soak",
        ),
        Asked(
            "Mixed and hostile traffic, Redis killed: faults", "hour", "soak", "faults", most=0, short="faults, soak",
        ),
        Asked(
            "Mixed and hostile traffic, Redis killed: memory, the last quarter over the second", "hour", "soak",
            "memory, last quarter against the second", most=1.05, short="memory over time",
        ),
        Asked(
            "Mixed traffic with uploads, counted: wrong answers", "counted", "counted", "wrong answers", most=0,
            short="wrong answers, counted",
        ),
        Asked(
            "A change at one server, seen by the other: p99.9, ms", "seen", "seen", "delay p99.9", most=100,
            short="seen by the other, p99.9, ms",
        ),
        Asked(
            "One client with ten connections beside one with one: p95, ratio to 1:1", "fairness", "fairness",
            "p95 ratio, 10:1 to 1:1", most=2, short="p95 at 10:1, over 1:1",
        ),
        Asked(
            "One client with ten connections beside one with one: requests refused", "fairness", "fairness",
            "requests refused", most=0, short="refused of the other",
        ),
    ),
    by_question=True,
)  # fmt: skip
