"""The rows kept in benchmarks/results: all of them, and the latest that answer a question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.asked import Asked

Row = Mapping[str, Any]
HIDDEN = frozenset({"threads", "clock", "limit", "bytes", "rss_after_tenth"})
"""Parameters that repeat in every row of a question, or follow from another: they say nothing in each."""


def read(results: Path) -> list[Row]:
    """Every row of every file, the oldest first; rows from before rows had dates come before all others."""
    rows = [
        json.loads(line)
        for file in sorted(results.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    return sorted(rows, key=lambda row: row.get("date", ""))


def latest(asked: Asked, rows: Sequence[Row]) -> list[Row]:
    """The rows that answer a question, each variant with each set of parameters on each device once: the last."""
    found: dict[str, Row] = {}
    for row in rows:
        if asked.takes(row):
            found[f"{row['variant']} {told(row)} {row['device']}"] = row
    return [found[key] for key in sorted(found)]


def told(row: Row) -> dict[str, Any]:
    """The parameters that tell a row from others of its question."""
    return {key: value for key, value in row["params"].items() if key not in HIDDEN and not key.endswith("_ms")}


def figure(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def span(values: Sequence[float]) -> str:
    """The least and the greatest; one figure where they read alike."""
    low, high = figure(min(values)), figure(max(values))
    return low if low == high else f"{low} to {high}"
