"""The three pictures of docs/performance.md, drawn from the rows that its tables show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.asked import Asked
from benchmarks.beside import TO_IT
from benchmarks.kept import Row, latest
from benchmarks.opening import COPIES, as_bytes
from benchmarks.pivot import PEERS, name_of
from benchmarks.questions import ASKED
from smn_core.errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#1f6fb2", "#d9822b", "#3a8f5c", "#7c5295", "#b5423c", "#6b7280"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED)
STYLE: Any = {
    "figure.facecolor": "white", "axes.facecolor": "white", "font.size": 11, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "#9ca3af", "axes.titlesize": 13, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "xtick.color": "#374151", "ytick.color": "#374151",
}  # fmt: skip
Found = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Picture:
    """A file under docs/figures, what it shows, the rows that it needs by its own names, and how it is drawn."""

    file: str
    shows: str
    needs: Mapping[str, Asked]
    draw: Callable[[Figure, Found], None]

    def rows(self, rows: Sequence[Row]) -> Found:
        """Its rows; empty where some are not there."""
        found = {name: latest(asked, rows) for name, asked in self.needs.items()}
        return found if all(found.values()) else {}


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Every picture whose rows are there.

    Raises:
        InvalidArgument: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgument("plots need matplotlib: uv pip install -e '.[bench]'") from error
    for picture in PICTURES:
        if found := picture.rows(rows):
            with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
                figure = Figure(figsize=(8.6, 3.8), layout="constrained")
                picture.draw(figure, found)
                folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(folder / picture.file, dpi=120, metadata={"Software": None})


def _working_set(figure: Figure, found: Found) -> None:
    axes: Axes = figure.subplots()
    rows = found["set"]
    lines: dict[str, list[tuple[int, Row]]] = {}
    for row in rows:
        params = row["params"]
        label = f"{name_of(params['model'])}, density {params['density']}"
        lines.setdefault(label, []).append((int(row["variant"].split()[0]), row))
    for colour, (label, points) in zip(COLOURS * len(lines), sorted(lines.items()), strict=False):
        _line(axes, points, label, colour)
    sizes = sorted({size for points in lines.values() for size, _ in points})
    _log_ticks(axes, sizes)
    for slots in sorted({row["params"].get("slots") for row in rows} - {None}):
        axes.axvline(slots, color=GREY, linewidth=1, linestyle=":")
        axes.text(slots, 0.04, f"  {slots} slots: beyond them masks are swapped", color=GREY, fontsize=10)
    aim = AIM.least or 0.0
    axes.axhline(aim, color=GREY, linewidth=1, linestyle=":")
    axes.text(sizes[0], aim - 0.07, f"aim: {aim:g} or more", color=GREY, fontsize=10)
    axes.set_ylim(0, 1.2)
    axes.set_xlabel("masks that share the traffic, uniformly")
    axes.set_ylabel("images/s, over one mask's")
    axes.set_title("More masks than slots")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(0.02, 0.35))


def _bytes(figure: Figure, found: Found) -> None:
    """Bars on a logarithmic scale, memory and disk of one more task."""
    copies = {where: [row["p50"] for row in found[where] if row["variant"] in COPIES] for where in ("memory", "disk")}
    mine = {where: [row["p50"] for row in found[where] if row["variant"] == "smn"] for where in ("memory", "disk")}
    rank = found["lora memory"][0]["params"]["rank"]
    lora = {where: [row["p50"] for row in found[f"lora {where}"]] for where in ("memory", "disk")}
    kinds = [("a full copy of the model", copies), (f"a LoRA adapter, rank {rank}", lora), ("an SMN mask", mine)]
    axes: Axes = figure.subplots()
    for place, (_, values) in enumerate(reversed(kinds)):
        for offset, where, colour in ((0.19, "memory", BLUE), (-0.19, "disk", ORANGE)):
            value = max(values[where])
            axes.barh(place + offset, value, 0.34, color=colour, label=where if place == 0 else None)
            axes.text(value * 1.15, place + offset, as_bytes(value), va="center", fontsize=10)
    axes.set_yticks(range(len(kinds)), [label for label, _ in reversed(kinds)])
    axes.set_xscale("log")
    axes.set_xlim(1e3, 2e8)
    axes.set_xticks([1e3, 1e4, 1e5, 1e6, 1e7, 1e8], ["1 kB", "10 kB", "100 kB", "1 MB", "10 MB", "100 MB"])
    axes.minorticks_off()
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"What one more task takes on {name_of(found['memory'][0]['params']['model'])}")
    axes.set_xlabel("logarithmic scale")
    axes.legend(frameon=False, loc="lower right")


def _peers(figure: Figure, found: Found) -> None:
    """A panel a law of traffic, a line a peer, over the number of tasks."""
    panels: list[Axes] = list(figure.subplots(1, len(PANELS), sharey=True))
    for axes, (law, title) in zip(panels, PANELS.items(), strict=True):
        rows = [row for row in found["peers"] if row["params"]["law"] == law]
        sizes = sorted({row["params"]["tasks"] for row in rows})
        for colour, peer in zip(COLOURS, COPIES, strict=True):
            points = [(row["params"]["tasks"], row) for row in rows if row["variant"] == peer]
            _line(axes, points, f"{PEERS[peer]}", colour)
        axes.axhline(1, color="black", linewidth=1)
        _log_ticks(axes, sizes)
        axes.set_xlabel("tasks")
        axes.set_title(title, fontsize=11, fontweight="normal")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("SMN's images/s, over the peer's")
    panels[0].text(panels[0].get_xlim()[0], 0.08, "  below the line at 1 the peer is faster", fontsize=10, color=GREY)
    panels[-1].legend(frameon=False, loc="upper left")
    figure.suptitle("Beside servers with a full copy for each task", x=0.01, ha="left", fontsize=13, fontweight="bold")


def _line(axes: Axes, points: Sequence[tuple[int, Row]], label: str, colour: str) -> None:
    """The medians, and the span from the 20th to the 80th percentile as a band."""
    points = sorted(points, key=lambda point: point[0])
    sizes = [size for size, _ in points]
    axes.plot(sizes, [row["p50"] for _, row in points], marker="o", color=colour, label=label, linewidth=2)
    low, high = ([row[name] for _, row in points] for name in ("p20", "p80"))
    axes.fill_between(sizes, low, high, color=colour, alpha=0.12, linewidth=0)


def _log_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()


def _asked(bench: str, metric: str, *variants: str, **params: Any) -> Asked:
    return Asked("", bench, bench, metric, variants=variants, params=params)


AIM = next(asked for asked in ASKED if asked.bench == "set" and not asked.variants)
PANELS = {"uniform": "uniform traffic", "zipf:1.5": "few tasks are popular (zipf:1.5)"}
PICTURES = (
    Picture(
        "working-set.png",
        "Images a second over the number of masks that share the traffic",
        {"set": AIM},
        _working_set,
    ),
    Picture(
        "bytes.png",
        "Bytes that one more task takes in memory and on disk: a mask, a LoRA adapter, a full copy",
        {
            "memory": _asked("peers", "memory a task"),
            "disk": _asked("peers", "disk a task"),
            "lora memory": _asked("lora", "memory a task", "lora"),
            "lora disk": _asked("lora", "disk a task", "lora"),
        },
        _bytes,
    ),
    Picture(
        "peers.png",
        "SMN's images a second over those of servers with full copies: torch, ONNX Runtime, OpenVINO",
        {"peers": _asked("peers", f"images/s, {TO_IT}")},
        _peers,
    ),
)
