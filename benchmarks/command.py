"""What `smn bench` does: run benchmarks one after another, show their rows, keep them; or write the page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.all import BENCHES, RESULTS, Failed, find, run
from smn_core.verbs.show import as_json as print_json
from smn_core.verbs.show import table
from smn_core.verbs.stderr import note


def measure(names: Sequence[str], *, quick: bool, as_json: bool, out: Path | None) -> bool:
    """Run benchmarks; returns whether all of them ended well. Rows go to stdout as they come and to `out/NAME.jsonl`.

    Raises:
        InvalidArgument: an unknown name.
    """
    benches, failed = find(names), list[str]()
    for number, bench in enumerate(benches, 1):
        place = f"{number}/{len(benches)} {bench.name}"
        if reason := bench.left_out():
            note(f"{place}: left out, {reason}")
            continue
        note(f"{place}: {bench.question}")
        began = time.perf_counter()
        try:
            for row in run(bench, quick=quick, out=(out or RESULTS) / f"{bench.name}.jsonl"):
                print(json.dumps(row) if as_json else f"  {line(row)}", flush=True)
        except Failed as error:
            note(f"error: {error}")
            failed.append(bench.name)
        note(f"{place}: {time.perf_counter() - began:.0f} s")
    if failed:
        note(f"error: not measured to the end: {', '.join(failed)}")
    return not failed


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    params = ", ".join(f"{key} {value}" for key, value in row["params"].items())
    spread = f" ({row['p20']:g} to {row['p80']:g}, n {row['n']})" if row["n"] > 1 else ""
    return f"{row['variant']}: {row['metric']} {row['p50']:g} {row['unit']}{spread} [{params}]"


def list_benches(*, as_json: bool) -> None:
    """Names, questions and modules."""
    if as_json:
        print_json([{"name": b.name, "question": b.question, "module": f"benchmarks.{b.module}"} for b in BENCHES])
    else:
        table(("name", "question"), [(bench.name, bench.question) for bench in BENCHES])


def write_report(results: Path | None) -> None:
    """Write docs/performance.md and its plots from the rows."""
    from benchmarks.report import PAGE, write

    write(results or RESULTS, PAGE)
    note(f"{PAGE}")
