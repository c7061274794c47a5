"""Names of files as text: in a line of a file, which gives them back, and in a message on one line."""

from __future__ import annotations

import os
import re
import unicodedata

NAMED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
FROM_NAMED = {escape[1]: character for character, escape in NAMED.items()}
BREAKS = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
"""What `str.splitlines` ends a line at."""
ESCAPE = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of Unicode that move a terminal's cursor, colour or direction, end a line, or are no text."""
JOINERS = "\u200c\u200d"
"""Of category Cf; words and emoji are written with them."""
FIRST_BYTE, LAST_BYTE = 0xDC80, 0xDCFF
"""Surrogates that stand for the bytes 0x80 to 0xff of a name that is not UTF-8, as `os.fsdecode` has it."""


def as_line(name: str) -> str:
    """A name as one line of UTF-8. A backslash is doubled, so that `of_line` gives the same name back."""
    return "".join(_escape(c) if c == "\\" or c in BREAKS or "\ud800" <= c <= "\udfff" else c for c in name)


def of_line(line: str) -> str:
    """The name that a line of `as_line` stands for."""
    return ESCAPE.sub(_unescape, line)


def as_text(name: str) -> str:
    """A name as text that UTF-8 can write; bytes that are not UTF-8 are `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def visible(text: str) -> str:
    """A text as a terminal may show it on one line, with escapes for what it would obey instead of showing it."""
    if text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in UNSEEN and c not in JOINERS else c for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if character in NAMED:
        return NAMED[character]
    if FIRST_BYTE <= code <= LAST_BYTE:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescape(found: re.Match[str]) -> str:
    named, byte, short, long = found.groups()
    if named is not None:
        return FROM_NAMED[named]
    code = int(byte or short or long, 16)
    return chr(code + 0xDC00 if byte is not None and code >= 0x80 else code)
