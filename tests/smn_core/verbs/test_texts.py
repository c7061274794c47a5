"""Names of files as text: lines that give them back, messages that stay one line."""

from __future__ import annotations

import sys
import unicodedata

from smn_core.verbs.texts import as_line, of_line, visible

EVERY_CHARACTER = [chr(code) for code in range(sys.maxunicode + 1)]


def test_a_line_holds_any_name_and_gives_it_back():
    names = [f"a{c}b" for c in EVERY_CHARACTER] + [
        "\\n",
        "\\\\n",
        "\\x85",
        "\x85",
        "\udc85",
        "\\u2028",
        "a/\\",
        "\\udc85",
    ]
    lines = [as_line(name) for name in names]
    "".join(lines).encode("utf-8")
    assert all(len(line.splitlines()) == 1 for line in lines)
    assert [of_line(line) for line in lines] == names
    assert len(set(lines)) == len(set(names))


def test_names_that_break_no_line_are_listed_as_they_are():
    for name in ("b/2.png", "üñí.png", " lead.png", "🙂.png", "esc\x1b.png", "tab\t.png"):
        assert as_line(name) == name
    assert as_line("a\\b\n\r\x0b\x85\u2028\udcff") == r"a\\b\n\r\x0b\u0085\u2028\xff"


def test_a_message_shows_what_a_terminal_would_obey():
    assert visible("esc\x1b[31m\nline\r\t\x9b\u202e\udcff.png") == r"esc\x1b[31m\nline\r\t\u009b\u202e\xff.png"
    shown = visible("".join(EVERY_CHARACTER))
    assert {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"} == set()
    for name in ("üñí\u3000.png", "[bold]x.png", "Screenshot 9\u202fAM.png", "👩\u200d👧.png", "a\\b"):
        assert visible(name) == name
