"""What masks and cascades may be called, and how names from elsewhere are written."""

from __future__ import annotations

import re

from smn_core.errors import InvalidArgument

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def check_name(name: str) -> None:
    """Raise InvalidArgument unless `name` may name a mask or cascade."""
    if not NAME.fullmatch(name):
        raise InvalidArgument(f"{name[:160]!r} is not a name: [a-z0-9][a-z0-9._-]*, at most 128 characters")


def sayable(text: str) -> str:
    """The text as UTF-8 has it: half a surrogate pair, as in a file's name of other bytes, is written `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()
