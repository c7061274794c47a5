"""docs/performance.md is made from the rows: the last of each, held against its aim."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.all import BENCHES, RESULTS
from benchmarks.asked import Asked, Table
from benchmarks.kept import latest, read
from benchmarks.opening import SENTENCES, as_bytes, sentences
from benchmarks.pivot import lines_of
from benchmarks.plots import PICTURES
from benchmarks.questions import ASKED, TABLES
from benchmarks.report import PAGE, text_of, write

HOT = next(asked for asked in ASKED if asked.bench == "hot")
ROW = {
    "bench": "hot", "variant": "engine", "params": {"model": "m", "batch": 1},
    "metric": "images/s, ratio to plain timm", "unit": "x",
    "p50": 1.0, "p20": 0.9, "p80": 1.1, "n": 3, "commit": "abc", "device": "cpu", "torch": "2",
}  # fmt: skip


def test_the_page_is_what_the_command_makes_of_the_rows():
    assert PAGE.read_text() == text_of(read(RESULTS)), "run: smn bench --report"


def test_every_row_is_measured_by_a_benchmark():
    names = {bench.name for bench in BENCHES}
    assert {asked.run for asked in ASKED if not asked.needs} <= names


def test_titles_are_unique():
    titles = [asked.title for asked in ASKED]
    assert len(set(titles)) == len(titles)
    heads = [table.title for table in TABLES]
    assert len(set(heads)) == len(heads)


def test_the_last_measured_row_is_shown(tmp_path):
    rows = [ROW | {"p50": 1.01, "date": "2026-02-02"}, ROW | {"p50": 1.0, "date": "2026-01-01"}, ROW]
    (tmp_path / "hot.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert [row["p50"] for row in latest(HOT, read(tmp_path))] == [1.01]


@pytest.mark.parametrize(("median", "shown", "met"), [(2.0, "2.00", "yes"), (1.5, "1.50", "0 of 1")])
def test_the_summary_says_whether_the_aim_is_met(median, shown, met):
    page = text_of([ROW | {"p50": median}])
    assert f"| >= 1.9 | {shown} | {met} |" in page


def test_what_was_not_measured_says_so_and_how():
    page = text_of([])
    assert page.count("| not measured") == len(ASKED)
    assert "Not measured yet, needs a GPU: `smn bench --only gpu`." in page
    assert page.count("some of it is not measured, `smn bench --only ") == len(SENTENCES)
    assert f"{len(ASKED)} questions are not measured" in page
    assert "![" not in page


def test_a_table_says_which_of_its_questions_was_not_measured():
    lines = lines_of(TABLE, [row_of("x", 0.5), row_of("y", 0.5)])
    assert lines[-1] == "Not measured yet (short of b), needs luck: `smn bench --only b`."


def test_figures_tell_their_command_and_whether_it_was_the_quick_form():
    command = "python -m benchmarks.engine --quick"
    page = text_of([ROW | {"command": command, "machine": "2 cores", "date": "2026-01-01T"}])
    assert f"Measured on cpu, 2 cores, 2026-01-01, commit abc, `{command}` (a quick run)." in page


def row_of(variant, p50, *, metric="ratio", p20=None, p80=None, **more):
    """A row of the questions of TABLE."""
    params = {"model": "m", "batch": 1} | {key: more.pop(key) for key in ("batch", "model", "size") if key in more}
    spread = {"p20": p50 if p20 is None else p20, "p80": p50 if p80 is None else p80}
    return ROW | {"bench": "some", "metric": metric, "variant": variant, "params": params, "p50": p50, **spread, **more}


TABLE = Table(
    "T", "what it is", ("batch",),
    (Asked("A", "a", "some", "ratio", most=1.0, short="short of a"),
     Asked("B", "b", "some", "other", short="short of b", needs="luck")),
    by_question=True,
)  # fmt: skip


def test_what_differs_becomes_rows_and_columns_and_the_rest_the_caption():
    rows = [row_of(v, p50, batch=b) for v, b, p50 in (("y", 1, 0.5), ("y", 16, 0.25), ("x", 2, 0.75), ("x", 16, 0.125))]
    caption, _, *grid = lines_of(TABLE, rows)[:6]
    assert caption == "What it is. Aim: <= 1. Model m, 3 repetitions."
    assert grid == [
        "|  | batch 1 | batch 2 | batch 16 |",
        "| --- | --- | --- | --- |",
        "| x |  | 0.750 | 0.125 |",
        "| y | 0.500 |  | 0.250 |",
    ]


def test_a_median_that_misses_its_aim_is_marked():
    text = "\n".join(lines_of(TABLE, [row_of("x", 0.5), row_of("x", 1.5, batch=2)]))
    assert "| 0.500 | 1.50 ✗ |" in text


def test_a_spread_is_shown_where_it_is_wide_or_holds_the_aim():
    rows = [
        row_of("x", 0.5, p20=0.49, p80=0.51),
        row_of("x", 0.98, batch=2, p20=0.97, p80=1.01),
        row_of("x", 0.5, batch=3, p20=0.4, p80=0.6),
        row_of("x", 0.5, batch=4, p20=0.4, p80=0.6, n=1),
    ]
    assert "| 0.500 | 0.980 (0.970–1.01) | 0.500 (0.400–0.600) | 0.500 |" in lines_of(TABLE, rows)  # noqa: RUF001


def test_rows_of_several_commits_bear_letters_that_the_caption_tells():
    rows = [
        row_of("x", 0.5),
        row_of("x", 0.25, batch=2),
        row_of("x", 0.125, batch=3, commit="def"),
        row_of("y", 0.5, commit="def"),
    ]
    lines = lines_of(TABLE, rows)
    assert "| x | 0.500 | 0.250 | 0.125 <sup>b</sup> | a |" in lines
    assert "| y | 0.500 |  |  | b |" in lines
    assert "Measured on cpu, no date. a: commit abc. b: commit def." in lines


def test_two_rows_never_share_a_place():
    """Whatever tells two rows apart is in the table, be it a parameter that only one of them has."""
    rows = [row_of("x", 0.5), row_of("x", 0.25, size=3), row_of("x", 0.75, device="other")]
    text = "\n".join(lines_of(TABLE, rows))
    assert all(figure in text for figure in ("0.500", "0.250", "0.750"))


def test_every_figure_of_the_sentences_comes_from_the_rows():
    """Where all rows say 7.77, so do the sentences; what else has a point is a setting or an aim."""
    *measured, not_good = sentences([row | {"p50": 7.77} for row in read(RESULTS)])
    assert len(measured) == 6
    assert all("7.77" in sentence or "777 %" in sentence for sentence in measured)
    assert set(re.findall(r"\d+\.\d+", " ".join(measured))) == {"7.77", "1.5", "0.5"}
    assert "(7.77, aim <= 0)" in not_good  # an aim of 0 that is missed comes first


def test_a_sentence_tells_the_least_and_the_greatest():
    rows = [ROW | {"p50": p50, "params": {"model": "m", "batch": batch}} for batch, p50 in ((1, 1.25), (7, 1.5))]
    first, *_, last = sentences(rows)
    assert first.endswith(
        "gives 1.25 to 1.50 times the images a second of plain timm, over 1 model and batches of 1 to 7."
    )
    assert "1 of 1 aims are missed in at least one case, the furthest: *Hot mask against plain timm: images/s*" in last


@pytest.mark.parametrize(
    ("value", "text"), [(12, "12.0 B"), (133_803, "134 kB"), (999.7, "1,000 B"), (22_111_200, "22.1 MB")]
)
def test_bytes_read_in_decimal_units(value, text):
    assert as_bytes(value) == text


def test_the_page_is_one_that_people_read():
    lines = PAGE.read_text().splitlines()
    assert len(lines) < 400
    opening = lines[: lines.index("## All questions")]
    assert sum(line.startswith("![") for line in opening) == len(PICTURES) == 3
    assert [line[:3] for line in opening if line[:1].isdigit()] == [f"{number}. " for number in range(1, 8)]
    assert not any(line.startswith("![") for line in lines[len(opening) :])


def test_plots_are_drawn_beside_the_page(tmp_path):
    sizes = [ROW | {"bench": "set", "metric": "images/s, ratio to one mask", "variant": f"{n} masks",
                    "params": {"model": "m", "density": 0.99, "slots": 16}} for n in (1, 16, 64)]  # fmt: skip
    (tmp_path / "set.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in sizes))
    write(tmp_path, tmp_path / "performance.md")
    assert (tmp_path / "figures" / "working-set.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("figures/working-set.png").name in (tmp_path / "performance.md").read_text()


def test_the_pictures_of_the_kept_rows_are_drawn_alike_each_time(tmp_path):
    for folder in ("once", "again"):
        (tmp_path / folder).mkdir()
        write(RESULTS, tmp_path / folder / "performance.md")
    for picture in PICTURES:
        once, again = ((tmp_path / folder / "figures" / picture.file).read_bytes() for folder in ("once", "again"))
        assert once == again
        assert f"(figures/{picture.file})" in PAGE.read_text()
