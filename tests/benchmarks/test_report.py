"""docs/performance.md is made from the rows: the last of each, held against its aim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.all import BENCHES, RESULTS
from benchmarks.asked import ASKED
from benchmarks.report import PAGE, latest, read, text_of, write

HOT = next(asked for asked in ASKED if asked.bench == "hot")
ROW = {
    "bench": "hot", "variant": "engine", "params": {"model": "m", "batch": 1}, "metric": "ratio to plain timm",
    "unit": "x", "p50": 1.0, "p20": 0.9, "p80": 1.1, "n": 3, "commit": "abc", "device": "cpu", "torch": "2",
}  # fmt: skip


def test_the_page_is_what_the_command_makes_of_the_rows():
    assert PAGE.read_text() == text_of(read(RESULTS)), "run: smn bench --report"


def test_every_row_is_measured_by_a_benchmark():
    names = {bench.name for bench in BENCHES}
    assert {asked.run for asked in ASKED if not asked.needs} <= names


def test_titles_are_unique():
    titles = [asked.title for asked in ASKED]
    assert len(set(titles)) == len(titles)


def test_the_last_measured_row_is_shown(tmp_path):
    rows = [ROW | {"p50": 1.01, "date": "2026-02-02"}, ROW | {"p50": 1.0, "date": "2026-01-01"}, ROW]
    (tmp_path / "hot.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert [row["p50"] for row in latest(HOT, read(tmp_path))] == [1.01]


@pytest.mark.parametrize(("median", "met"), [(1.0, "yes"), (1.5, "0 of 1")])
def test_the_summary_says_whether_the_aim_is_met(median, met):
    page = text_of([ROW | {"p50": median}])
    assert f"| <= 1.02 | {median:.3g} | {met} |" in page


def test_what_was_not_measured_says_so_and_how():
    page = text_of([])
    assert page.count("not measured") == len(ASKED)
    assert "Not measured yet, needs a GPU: `smn bench --only gpu`." in page


def test_figures_tell_their_command_and_whether_it_was_the_quick_form():
    page = text_of(
        [ROW | {"command": "python -m benchmarks.engine --quick", "machine": "2 cores", "date": "2026-01-01T"}]
    )
    assert "| cpu, 2 cores, 2026-01-01, quick |" in page
    assert "```sh\npython -m benchmarks.engine --quick\n```" in page


def test_plots_are_drawn_beside_the_page(tmp_path):
    sizes = [ROW | {"bench": "set", "metric": "images/s, ratio to one mask", "variant": f"{n} masks",
                    "params": {"model": "m", "density": 0.99}} for n in (1, 16, 64)]  # fmt: skip
    (tmp_path / "set.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in sizes))
    write(tmp_path, tmp_path / "performance.md")
    assert (tmp_path / "figures" / "working-set.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("figures/working-set.png").name in (tmp_path / "performance.md").read_text()
