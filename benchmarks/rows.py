"""The one row of every benchmark: a JSON line on stdout, and in a file when asked."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def row(
    bench: str,
    variant: str,
    params: Mapping[str, Any],
    metric: str,
    unit: str,
    values: Sequence[float] | NDArray[np.float64],
    *,
    out: Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Print the row of `values` (one a repetition); also append it to the file `out`.

    `device` names where it ran; without it, this machine's processor.
    """
    p20, p50, p80 = (float(f"{p:.6g}") for p in np.percentile(np.asarray(values, np.float64), (20, 50, 80)))
    result = {
        "bench": bench,
        "variant": variant,
        "params": dict(params),
        "metric": metric,
        "unit": unit,
        "p50": p50,
        "p20": p20,
        "p80": p80,
        "n": len(values),
        "commit": commit(),
        "device": device or f"cpu: {processor()}",
        "torch": torch.__version__,
        "machine": machine(),
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    line = json.dumps(result)
    print(line, flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    return result


@cache
def commit() -> str:
    """The short name of the checked-out commit, with `+` when tracked files differ from it; `unknown` without git."""

    def git(*words: str) -> str:
        command = ("git", "-C", str(Path(__file__).parent), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def command() -> str:
    """What was typed to measure this, without the file that the rows go to."""
    words = list(sys.orig_argv[1:])
    while "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return shlex.join(["python", *words]) if words[:1] == ["-m"] else "python"


@cache
def machine() -> str:
    """Cores, memory, and how busy others keep them: the load of the minute before."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}"


@cache
def processor() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
