"""docs/performance.md from the rows in benchmarks/results: pictures, sentences, every question, a table for each.

.venv/bin/python -m benchmarks.report          # the same as `smn bench --report`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.all import RESULTS, ROOT
from benchmarks.asked import Asked
from benchmarks.kept import Row, latest, read, span
from benchmarks.opening import sentences
from benchmarks.pivot import lines_of
from benchmarks.plots import PICTURES, draw
from benchmarks.questions import TABLES

PAGE = ROOT / "docs" / "performance.md"
TITLE = [
    "# Performance",
    "",
    "What SMN costs in time and memory, beside what one would use instead: seven answers, then a table a question.",
    "",
]
OVERVIEW = """
## All questions
`smn bench --report` writes this page from the last measured rows of `benchmarks/results/`; do not edit it. A figure is
the median of n repetitions; ratios are of variants that took turns in one run. Brackets hold the 20th and 80th
percentile, where the aim lies between them or they are a quarter of the median apart. ✗ marks a median that misses its
aim; an aim `known` asks for no more than a figure. *identical*, *uniform*, *zipf:1.5*, *skewed* and *distinct* say how
images are spread over masks: all on one, evenly, by two laws in which few masks are popular, or each on another mask.
`smn bench --only NAME` measures again, `--quick` in minutes.

| question | aim | medians | met |
|---|---|---|---|
""".rstrip()


def main() -> None:
    write(RESULTS, PAGE)


def write(results: Path, page: Path) -> None:
    """Write the page, and its pictures beside it under `figures/`."""
    rows = read(results)
    page.write_text(text_of(rows), encoding="utf-8")
    draw(rows, page.parent / "figures")


def text_of(rows: Sequence[Row]) -> str:
    """The whole page."""
    lines = list(TITLE)
    for picture in PICTURES:
        if picture.rows(rows):
            lines += [f"![{picture.shows}](figures/{picture.file})", ""]
    lines += [f"{number}. {sentence}" for number, sentence in enumerate(sentences(rows), 1)]
    lines.append(OVERVIEW)
    for table in TABLES:
        for asked in table.questions:
            link = f"[{asked.title}](#{_anchor(table.title)})"
            lines.append(f"| {link} | {asked.aim} | {_answer(asked, latest(asked, rows))} |")
    for table in TABLES:
        lines += ["", f"## {table.title}", *lines_of(table, rows)]
    return "\n".join(lines) + "\n"


def _answer(asked: Asked, rows: Sequence[Row]) -> str:
    """The medians from the least to the greatest, and in how many cases they meet the aim."""
    if not rows:
        return f"not measured{f', needs {asked.needs}' if asked.needs else ''} |"
    medians = [row["p50"] for row in rows]
    met = sum(map(asked.met, medians))
    verdict = "" if asked.aim == "known" else "yes" if met == len(medians) else f"{met} of {len(medians)}"
    return f"{span(medians)} | {verdict}"


def _anchor(title: str) -> str:
    """What a heading's address becomes on the sites that show such pages."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


if __name__ == "__main__":
    main()
