"""Print the table of `smn evaluate`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

PIPED_COLUMNS = 200


def print_results(found: dict[str, Any]) -> None:
    """Print scores with labels, then signs without labels. The untouched backbone is the first row."""
    console, rows = Console(), found["rows"]
    if not console.is_terminal:
        console.width = PIPED_COLUMNS  # a file has room for every digit
    low = list(rows[0].get("low_shot", {}))
    scored = f"{found['folds']} folds of them" if found["folds"] else f"{found['test_images']} test"
    title = f"{found['data']}: {found['train_images']} train, {scored}, {found['image_size']} px"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    columns = [name for name in ("knn", "linear") if name in rows[0]]
    headings = {"knn": f"kNN ({found['knn_k']})", "linear": "probe"}
    for name in columns:
        table.add_column(headings[name], justify="right")
    for amount in low:
        table.add_column(f"{amount} labels", justify="right")
    counts = any("bytes" in row for row in rows)
    for heading in ("density", "rank", "agreement", "kept", "loss", *(["bytes"] if counts else [])):
        table.add_column(heading, justify="right")
    for row in rows:
        few = [f"{row['low_shot'][a]['mean']:.3f} ± {row['low_shot'][a]['deviation']:.3f}" for a in low]
        sign = row["signs"]
        table.add_row(
            row["name"],
            *(f"{row[name]:.4f}" for name in columns),
            *few,
            f"{row['density']:.6f}" if "density" in row else "",
            f"{sign['effective_rank']:.1f}",
            f"{sign['view_agreement']:.3f}" if "view_agreement" in sign else "",
            f"{sign['neighbours_kept']:.3f}",
            " -> ".join(f"{sign[name]:.3f}" for name in ("loss_before", "loss_after") if name in sign),
            *([f"{row['bytes']['total']:,}" if "bytes" in row else ""] if counts else []),
        )
    console.print(table)
    for remark in found["remarks"]:
        console.print(remark)
    skipped = max(row["skipped"] for row in rows)
    if skipped:
        console.print(f"{skipped} images could not be read and were left out.")
