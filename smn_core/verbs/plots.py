"""The picture of a mask: where in the network it switches weights off."""

from __future__ import annotations

from pathlib import Path

from smn_core.errors import InvalidArgument
from smn_core.files import replacing
from smn_core.mask import TaskMask
from smn_core.verbs.report import stages


def require_plottable(out: Path) -> None:
    """Look before the work, not after it.

    Raises:
        InvalidArgument: matplotlib is not installed, or cannot write the format of `out`'s suffix; no such folder.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgument("plots need matplotlib: uv pip install -e '.[training]'") from error
    if out.suffix[1:].lower() not in Figure().canvas.get_supported_filetypes():
        raise InvalidArgument(f"cannot plot to {out}: use .png, .svg or .pdf")
    if not out.parent.is_dir():
        raise InvalidArgument(f"cannot plot to {out}: the folder {out.parent} does not exist")


def density_plot(mask: TaskMask, out: Path, title: str) -> None:
    """Density of every maskable tensor in order, coloured by stage, with each stage's own (the paper's figure 6).

    Raises:
        InvalidArgument: matplotlib is not installed, or cannot write the format of `out`'s suffix.
    """
    require_plottable(out)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    by_name, first = mask.densities, 0
    for i, stage in enumerate(stages(mask)):
        tensors = mask.layout.stages[stage["name"]]
        last = first + len(tensors)
        color = f"C{i % 10}"
        axes.bar(range(first, last), [by_name[t.name] for t in tensors], width=0.9, color=color, alpha=0.45)
        axes.plot([first - 0.45, last - 0.55], [stage["density"]] * 2, color=color, linewidth=2.5)
        axes.text((first + last - 1) / 2, 1.0, stage["name"], ha="center", va="bottom", fontsize=7, rotation=45)
        first = last
    lowest = min(by_name.values())
    # Masks are nearly all ones: start just below the lowest density, or every bar looks full.
    axes.set_ylim(max(0.0, lowest - 0.15 * (1 - lowest) - 1e-6), 1.0)
    axes.set_xlabel("maskable tensor, input to output")
    axes.set_ylabel("density (fraction ON)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_title(
        f"{title}: density {mask.density:.6f}, {mask.n_off:,} of {mask.layout.n_weights:,} OFF",
        pad=32,
        fontsize=9,
        parse_math=False,
    )
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150)
