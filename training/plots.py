"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from numpy import ndarray

from smn_core.errors import InvalidArgument
from smn_core.files import replacing


def draw_curve(rows: Sequence[dict[str, float]], out: Path, title: str) -> None:
    """Draw loss and density by step."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], color="C0", linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss", color="C0")
    axes.set_title(title, fontsize=10)
    with_density = [r for r in rows if "density" in r]
    if with_density:
        right = axes.twinx()
        right.plot([r["step"] for r in with_density], [r["density"] for r in with_density], color="C1", linewidth=1.5)
        right.set_ylabel("density (fraction ON)", color="C1")
        right.ticklabel_format(axis="y", useOffset=False)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150)


def draw_low_shot(found: dict[str, Any], out: Path) -> None:
    """Draw the accuracy of the linear probe by number of labels, as the paper's figure 3 does.

    Bars are deviations over draws.

    Raises:
        InvalidArgument: there are no low-shot results.
    """
    rows = [row for row in found["rows"] if row.get("low_shot")]
    if not rows:
        raise InvalidArgument("--plot draws low-shot accuracy: give --labels")
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        amounts = sorted(row["low_shot"], key=float)
        means = [row["low_shot"][a]["mean"] for a in amounts]
        deviations = [row["low_shot"][a]["deviation"] for a in amounts]
        ticks = [*amounts, "all"]
        axes.errorbar(ticks, [*means, row["linear"]], yerr=[*deviations, 0], marker="o", capsize=3, label=row["name"])
    axes.set_xlabel("labels (a class, or fraction)")
    axes.set_ylabel("linear probe, top-1")
    axes.set_title(found["data"], fontsize=10)
    axes.legend(fontsize=8)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150)


def draw_clusters(u: ndarray, clusters: ndarray, n_clusters: int, out: Path, title: str) -> None:
    """Draw images by the first two whitened coordinates of the router, coloured by cluster; sizes in the legend."""
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    axes = figure.subplots()
    for j in range(n_clusters):
        rows = u[clusters == j]
        second = rows[:, 1] if u.shape[1] > 1 else rows[:, 0] * 0
        axes.scatter(rows[:, 0], second, s=5, alpha=0.6, color=f"C{j % 10}", label=f"expert {j + 1}: {len(rows)}")
    axes.set_xlabel("first principal component, whitened")
    axes.set_ylabel("second")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.legend(fontsize=8, markerscale=3)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150)
