"""What verbs print: names of files never move a terminal's cursor and never break a line."""

from __future__ import annotations

import pytest

from smn_core.verbs import show

ODD = "esc\x1b[31m\nline\udcff\x9b.png"
SHOWN = r"esc\x1b[31m\nline\xff\u009b.png"


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
