"""What verbs print: names of files never move a terminal's cursor and never break a line."""

from __future__ import annotations

import pytest

from smn_core.verbs import show

ODD = "esc\x1b[31m\nline\udcff\x9b.png"
SHOWN = r"esc\x1b[31m\nline\xff\u009b.png"


def test_a_note_with_any_name_is_one_line_with_visible_escapes(capsys: pytest.CaptureFixture[str]):
    show.note(f"removed {ODD}")
    show.name_unreadable([f"{ODD}: no image", "b.png: no image"])
    show.count_others({".m\x1bv": 2})
    assert capsys.readouterr().err.splitlines() == [
        f"removed {SHOWN}",
        "warning: 2 images could not be read and were left out:",
        f"  {SHOWN}: no image",
        "  b.png: no image",
        r"2 files of other kinds are not read: 2 .m\x1bv",
    ]


def test_whoever_says_them_unreadable_images_are_named_with_visible_escapes():
    said: list[str] = []
    show.name_unreadable([ODD], say=said.append)
    assert said[-1] == f"  {SHOWN}"


def test_a_row_of_a_table_is_one_line_whatever_the_name(capsys: pytest.CaptureFixture[str]):
    show.table(("", "photo"), [("1", ODD), ("2", "üñí [bold].png")])
    assert [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        SHOWN,
        "üñí [bold].png",
    ]


def test_a_line_in_a_pipe_ends_where_its_text_does(capsys: pytest.CaptureFixture[str]):
    show.table(("name", "text"), [("short", "a"), ("long", "b" * 500)])
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) for line in lines] == [11, 8, 507]
    assert lines[2].endswith("b" * 500)
