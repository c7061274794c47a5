"""One record a request: its log line, its metrics, its headers and its span are all made of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass
class Record:
    """What is known of one request: the seconds of its stages, and facts such as its digest.

    `began` and `ends`, its deadline, are readings of `time.perf_counter`. `who` shares what is scarce with others.
    """

    request_id: str
    began: float = field(default_factory=time.perf_counter)
    ends: float = math.inf
    who: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)

    def server_timing(self) -> str:
        """The `Server-Timing` header: milliseconds by stage, and the total so far."""
        stages = {**self.stages, "total": time.perf_counter() - self.began}
        return ", ".join(f"{name};dur={1e3 * seconds:.3f}" for name, seconds in stages.items())
