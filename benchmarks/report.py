"""docs/performance.md from the rows in benchmarks/results: what is asked, the latest figure, whether it meets its aim.

.venv/bin/python -m benchmarks.report          # the same as `smn bench --report`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.all import RESULTS, ROOT
from benchmarks.asked import ASKED, Asked

PAGE = ROOT / "docs" / "performance.md"
HEAD = """# Performance

Written by `smn bench --report` from the rows in `benchmarks/results/`; do not edit. A figure is the median (p50), with
the 20th and 80th percentile of its n repetitions; ratios are of variants that took turns in one run. Where a row was
measured several times, the last is shown. `smn bench --only NAME` measures again, `--quick` in minutes; figures of a
quick run say so. Absolute times are those of the machine named beside them.

"""
# What repeats in every row of a group says nothing in each.
HIDDEN = frozenset({"threads", "clock", "limit", "bytes", "rss_after_tenth"})
Row = Mapping[str, Any]


def main() -> None:
    write(RESULTS, PAGE)


def write(results: Path, page: Path) -> None:
    """Write the page, and its plots beside it under `figures/`."""
    from benchmarks.plots import draw

    rows = read(results)
    page.write_text(text_of(rows), encoding="utf-8")
    for asked in ASKED:
        if asked.figure and (found := latest(asked, rows)):
            draw(asked, found, page.parent / "figures" / asked.figure)


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
            found[f"{row['variant']} {_shown(row)} {row['device']}"] = row
    return [found[key] for key in sorted(found)]


def text_of(rows: Sequence[Row]) -> str:
    """The whole page."""
    answers = {asked.title: latest(asked, rows) for asked in ASKED}
    lines = [HEAD + "| row | aim | worst of the latest | met |", "|---|---|---|---|"]
    for asked in ASKED:
        row = f"[{asked.title}](#{_anchor(asked.title)}) | {asked.aim} | {_summary(asked, answers[asked.title])}"
        lines += [f"| {row} |"]
    for asked in ASKED:
        lines += ["", f"## {asked.title}", *_section(asked, answers[asked.title])]
    return "\n".join(lines) + "\n"


def _summary(asked: Asked, rows: Sequence[Row]) -> str:
    if not rows:
        return f"not measured{f', needs {asked.needs}' if asked.needs else ''} |"
    if asked.aim == "known":
        return f"{len(rows)} figures |"
    medians = [row["p50"] for row in rows]
    worst = max(medians) if asked.most is not None else min(medians)
    met = sum(map(asked.met, medians))
    return f"{_figure(worst)} | {'yes' if met == len(medians) else f'{met} of {len(medians)}'}"


def _section(asked: Asked, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return [f"Not measured yet{f', needs {asked.needs}' if asked.needs else ''}: `smn bench --only {asked.run}`."]
    unit = {row["unit"] for row in rows}
    lines = [
        f"Metric: {asked.metric} ({', '.join(sorted(unit))}). Aim: {asked.aim}. `smn bench --only {asked.run}`.",
        "",
    ]
    if asked.figure:
        lines += [f"![{asked.title}](figures/{asked.figure})", ""]
    lines += [
        "| variant | where | p50 | p20 to p80 | n | met | commit | machine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        met = "" if asked.aim == "known" else "yes" if asked.met(row["p50"]) else "no"
        spread = f"{_figure(row['p20'])} to {_figure(row['p80'])}" if row["n"] > 1 else ""
        machine = ", ".join(part for part in (row["device"], row.get("machine", ""), _when(row)) if part)
        cells = (row["variant"], _shown(row), _figure(row["p50"]), spread, row["n"], met, row["commit"], machine)
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    commands = sorted({row["command"] for row in rows if row.get("command")})
    return lines + (["", "Measured with:", "```sh", *commands, "```"] if commands else [])


def _when(row: Row) -> str:
    quick = "quick" if "--quick" in row.get("command", "").split() else ""
    return ", ".join(part for part in (row.get("date", "")[:10], quick) if part)


def _shown(row: Row) -> str:
    """The parameters of a row, for people and as its key."""
    return ", ".join(
        f"{key} {value}" for key, value in row["params"].items() if key not in HIDDEN and key[-3:] != "_ms"
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _anchor(title: str) -> str:
    """What a heading's address becomes on the sites that show such pages."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


if __name__ == "__main__":
    main()
