"""The picture: accuracy gained against bytes, every adapter, a column for each set; and what the caption must say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smn_core.errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
PROBES = {"knn": "kNN", "linear": "linear probe"}
COLOURS = {"frozen": "#6b7280", "mask": "#1f6fb2", "lora": "#d9822b", "one-bit lora": "#7c5295", "bias": "#3a8f5c"}
NAMES = {"frozen": "map alone", "mask": "mask", "lora": "LoRA", "one-bit lora": "one-bit LoRA", "bias": "bias alone"}
MARKS = {"": "o", " + map": "s", " + diagonal map": "D"}
ENDS = {"": "", " + map": ", with the map", " + diagonal map": ", diagonal"}


def points_of(rows: Sequence[Row], data: str) -> list[Row]:
    """The last row of every adapter of a set, without the frozen backbone itself, by bytes."""
    last = {row["adapter"]: row for row in rows if row["data"] == data and row.get("adapter", "frozen") != "frozen"}
    return sorted(last.values(), key=lambda row: row["bytes"])


def frontier(points: Sequence[Row], probe: str) -> list[Row]:
    """Those that gain more than the frozen backbone and than everything of at most as many bytes."""
    found, best = list[Row](), 0.0
    for row in points:
        if row["test"][probe]["change"] > best:
            found, best = [*found, row], row["test"][probe]["change"]
    return found


def name_of(row: Row) -> str:
    kind, _, end = row["adapter"].partition(" + ")
    end = f" + {end}" if end else ""
    return f"{NAMES[kind]}{ENDS[end] if kind != 'frozen' or 'diagonal' in end else ''}"


def caption(rows: Sequence[Row]) -> list[str]:
    """A sentence for each set and probe: what is on the frontier, and where no mask is."""
    told = []
    for data in dict.fromkeys(row["data"] for row in rows if "adapter" in row):
        points = points_of(rows, data)
        for probe, shown in PROBES.items():
            on = frontier(points, probe)
            names = ", ".join(f"{name_of(row)} ({row['bytes']:,} B)" for row in on) or "nothing: no adapter gains"
            off = [row for row in points if row["adapter"].startswith("mask") and row not in on]
            not_there = f"; not on it: {', '.join(map(name_of, off))}" if off else ""
            told.append(f"{data}, {shown}: on the frontier {names}{not_there}.")
    return told


def table(rows: Sequence[Row]) -> list[str]:
    """Every adapter of every set as lines of Markdown: what was taken, points gained, bytes, seconds."""
    lines = ["| set | adapter | setting | kNN | gained | probe | gained | bytes | seconds |", "|---" * 9 + "|"]
    for data in dict.fromkeys(row["data"] for row in rows if "adapter" in row):
        frozen = [row for row in rows if row["data"] == data and row.get("adapter") == "frozen"][-1:]
        for row in [*frozen, *points_of(rows, data)]:
            first = row["adapter"] == "frozen"
            found = row["test"].values()
            scores = " | ".join(f"{change['after']:.3f} | {'' if first else _points(change)}" for change in found)
            cells = ("frozen", "") if first else (name_of(row), row["taken"])
            lines.append(f"| {data} | {' | '.join(cells)} | {scores} | {row['bytes']:,} | {row['seconds']:.0f} |")
    return lines


def _points(change: Mapping[str, float]) -> str:
    return f"{100 * change['change']:+.1f} ± {100 * change['error']:.1f}"


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw the picture.

    Raises:
        InvalidArgument: matplotlib is not installed, or there are no rows of the test split.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgument("plots need matplotlib: uv pip install -e '.[bench]'") from error
    sets = list(dict.fromkeys(row["data"] for row in rows if "adapter" in row))
    if not sets:
        raise InvalidArgument(f"{file}: there are no rows of the test split to draw")
    style: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **style}):
        figure = Figure(figsize=(4.6 * len(sets) + 1.6, 6.4), layout="constrained")
        panels = figure.subplots(len(PROBES), len(sets), sharex=True, squeeze=False)
        for column, data in enumerate(sets):
            for line, (probe, shown) in enumerate(PROBES.items()):
                axes = panels[line][column]
                _panel(axes, points_of(rows, data), probe)
                axes.set_title(f"{data}, {shown}", loc="left", fontweight="bold", fontsize=11)
            panels[-1][column].set_xlabel("bytes of a task's file")
        for line in range(len(PROBES)):
            panels[line][0].set_ylabel("points gained over the frozen backbone")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120, metadata={"Software": None})


def _panel(axes: Axes, points: Sequence[Row], probe: str) -> None:
    """A mark with its standard error for each adapter; a line through those on the frontier."""
    axes.axhline(0, color="black", linewidth=0.8)
    for row in points:
        change = row["test"][probe]
        kind, _, end = row["adapter"].partition(" + ")
        axes.errorbar(
            row["bytes"], 100 * change["change"], yerr=100 * change["error"], marker=MARKS[f" + {end}" if end else ""],
            color=COLOURS[kind], markersize=7, capsize=2, linestyle="none", label=name_of(row),
            markerfacecolor=COLOURS[kind] if not end else "white",
        )  # fmt: skip
    on = frontier(points, probe)
    axes.step(
        [row["bytes"] for row in on], [100 * row["test"][probe]["change"] for row in on], where="post",
        color="#9ca3af", linewidth=1, linestyle=":", zorder=0,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.minorticks_off()
