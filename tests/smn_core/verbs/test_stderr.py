"""What verbs say on stderr: a line each, whatever the names."""

from __future__ import annotations

import pytest

from smn_core.verbs import stderr

ODD = "esc\x1b[31m\nline\udcff\x9b.png"
SHOWN = r"esc\x1b[31m\nline\xff\u009b.png"


def test_a_note_with_any_name_is_one_line_with_visible_escapes(capsys: pytest.CaptureFixture[str]):
    stderr.note(f"removed {ODD}")
    stderr.name_unreadable([f"{ODD}: no image", "b.png: no image"])
    stderr.count_others({".m\x1bv": 2})
    assert capsys.readouterr().err.splitlines() == [
        f"removed {SHOWN}",
        "warning: 2 images could not be read and were left out:",
        f"  {SHOWN}: no image",
        "  b.png: no image",
        r"2 files of other kinds are not read: 2 .m\x1bv",
    ]


def test_whoever_says_them_unreadable_images_are_named_with_visible_escapes():
    said: list[str] = []
    stderr.name_unreadable([ODD], say=said.append)
    assert said[-1] == f"  {SHOWN}"
