"""The `metrics` of a mask's metadata: JSON of several writers, or text of a stranger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from smn_core.tensorfile import canonical_json

METRICS = "metrics"


def add_metrics(metadata: Mapping[str, str], key: str, value: Any) -> dict[str, str]:
    """The metadata with `value` under `key` of its metrics, beside what is there; free text is kept as `text`."""
    told = metadata.get(METRICS, "")
    try:
        found = json.loads(told) if told else {}
    except (ValueError, RecursionError):
        found = told
    kept = found if isinstance(found, dict) else {"text": told}
    return {**metadata, METRICS: canonical_json(kept | {key: value})}
