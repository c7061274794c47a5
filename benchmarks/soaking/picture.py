"""The picture of a soak: requests a second, memory, descriptors and threads over time, and when Redis was away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.plots import BLUE, GREEN, ORANGE, PURPLE, STYLE
from benchmarks.soaking.samples import MIB, Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MINUTE_S = 60


def draw(samples: Sequence[Sample], away: Sequence[Sequence[float]], file: Path) -> None:
    """Write the picture. `away` are the spans without Redis, in seconds of the samples' clock."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        figure = Figure(figsize=(8.6, 8.2), layout="constrained")
        panels: list[Axes] = list(figure.subplots(4, 1, sharex=True))
        for number, colour in zip(sorted({s.server for s in samples}), (BLUE, ORANGE, GREEN, PURPLE), strict=False):
            mine = [s for s in samples if s.server == number]
            minutes = [s.at_s / MINUTE_S for s in mine]
            name = f"server {number + 1}"
            if number == 0:
                rates = np.diff([s.requests for s in mine]) / np.diff([s.at_s for s in mine])
                panels[0].plot(minutes[1:], smooth(rates), color=BLUE, linewidth=1)
            panels[1].plot(minutes, [s.rss / MIB for s in mine], color=colour, label=f"{name}, resident")
            anonymous = [(s.anonymous + s.workers_anonymous) / MIB for s in mine]
            panels[1].plot(
                minutes, anonymous, color=colour, linestyle="--", label=f"{name} and decode workers, anonymous"
            )
            panels[2].plot(minutes, [s.descriptors for s in mine], color=colour, label=name)
            panels[3].plot(minutes, [s.threads for s in mine], color=colour, label=name)
        for axes, title in zip(
            panels, ("Requests a second", "Memory, MiB", "Open descriptors", "Threads"), strict=True
        ):
            axes.set_title(title, fontsize=11)
            axes.set_ylim(bottom=0)
            for start, end in away:
                axes.axvspan(start / MINUTE_S, end / MINUTE_S, color="#b5423c", alpha=0.35, linewidth=0)
        panels[1].legend(frameon=False, fontsize=9, ncols=2)
        panels[-1].set_xlabel("minutes; red: Redis is killed and away")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120, metadata={"Software": None})


def smooth(values: np.ndarray, n: int = 6) -> np.ndarray:
    """Means over n values; the ends over fewer."""
    ones = np.ones(min(n, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
