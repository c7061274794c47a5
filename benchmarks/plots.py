"""The pictures of docs/performance.md: a metric over the size that each row names, a line for each variant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.asked import Asked
from smn_core.errors import InvalidArgument

# The parameter that is the size, by bench; of the working set it is the variant.
SIZES = {"peers": "tasks", "lora": "tasks", "decode": "workers"}


def draw(asked: Asked, rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """One picture of the rows of one question.

    Raises:
        InvalidArgument: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgument("plots need matplotlib: install smn[bench]") from error
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = defaultdict(list)
    for row in rows:
        size, label = _place(row)
        lines[label].append((size, row))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, points in sorted(lines.items()):
        points.sort(key=lambda point: point[0])
        sizes = [size for size, _ in points]
        axes.plot(sizes, [row["p50"] for _, row in points], marker="o", label=label)
        axes.fill_between(sizes, [row["p20"] for _, row in points], [row["p80"] for _, row in points], alpha=0.15)
    aim = asked.least if asked.least is not None else asked.most
    if aim is not None:
        axes.axhline(aim, color="black", linestyle=":", linewidth=1)
    sizes = sorted({size for points in lines.values() for size, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(SIZES.get(asked.bench, "masks that share the traffic"))
    axes.set_ylabel(f"{asked.metric} ({rows[0]['unit']})")
    axes.legend(fontsize=7)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _place(row: Mapping[str, Any]) -> tuple[float, str]:
    """Where a row stands, and the line it belongs to."""
    params = dict(row["params"])
    if row["bench"] == "set":
        return float(str(row["variant"]).split()[0]), f"{params['model']}, density {params['density']}"
    size = float(params.pop(SIZES[row["bench"]]))
    told = [str(params[key]) for key in ("model", "law", "image") if key in params]
    return size, ", ".join([row["variant"], *told])
