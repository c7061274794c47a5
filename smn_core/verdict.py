"""The verdict in the `metrics` of a mask's file: {"verdict": {"answer", "reason", ...}}. Any other text is borne."""

from __future__ import annotations

import json
from collections.abc import Mapping

from smn_core.tensorfile import is_unicode

VERDICT = "verdict"
ADOPT, LEAVE_IT, CANNOT_TELL = ANSWERS = ("adopt", "leave it", "cannot tell")
MOST_CHARACTERS = 400
"""Of a reason that is repeated in a warning."""


def read_verdict(metadata: Mapping[str, str]) -> dict[str, str] | None:
    """`answer`, one of `ANSWERS`, and `reason`; None where a mask's metadata carry no verdict that can be read."""
    try:
        found = json.loads(metadata.get("metrics", ""))[VERDICT]
        answer, reason = found["answer"], found.get("reason", "")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None  # other programs may write any text there
    if answer not in ANSWERS or not isinstance(reason, str) or not is_unicode(reason):
        return None
    return {"answer": answer, "reason": reason}


def warn_of_verdict(metadata: Mapping[str, str]) -> list[str]:
    """The warning of a mask that was judged not to be worth having; none for any other."""
    found = read_verdict(metadata)
    if found is None or found["answer"] != LEAVE_IT:
        return []
    reason = " ".join(found["reason"].split())[:MOST_CHARACTERS]
    return [f"verdict: {LEAVE_IT}. {reason}".strip()]
