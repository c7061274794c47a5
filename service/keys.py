"""Keys as settings, files and variables give them: without the white space around them, or refused."""

from __future__ import annotations

import re

from smn_core.errors import InvalidArgument

KEY = re.compile(r"[!-~]+")


def clean_key(text: str, whose: str) -> str:
    """A key as a header carries it. White space around it goes: a Secret that `echo` made ends in a line break.

    Raises:
        InvalidArgument: it is empty, not ASCII or has white space inside. The message has `whose`, never the key.
    """
    key = text.strip()
    if not key:
        raise InvalidArgument(f"{whose}: a key is empty")
    if not KEY.fullmatch(key):
        raise InvalidArgument(
            f"{whose}: a key has a character that no HTTP header carries: use letters, digits and signs of ASCII, "
            "without white space (`openssl rand -hex 32` makes one)"
        )
    return key
