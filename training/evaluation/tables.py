"""Print the tables of `smn evaluate` and `smn verdict`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from smn_core.verbs.console import open_console
from training.evaluation.paired import AGREEMENT, EVIDENCE, SIGNS, Change
from training.evaluation.rule import ALL, Changes
from training.evaluation.verdict import Verdict

SHOWN = (*SIGNS, EVIDENCE)
EVALUATED_LEGEND = (
    "verdict: what the mask's file carries of `smn verdict`: adopt, leave it (it does harm or nothing), or cannot tell"
    " (ten labels a class decide)."
)
VERDICT_LEGEND = (
    "agreement: how often the nearest of all other gentle views is the image's own. margin: how much nearer it is than"
    " the best other one, in deviations. neighbours: the part of the nearest 20 that two strong views share. evidence:"
    " the changes of the last two together; it decides. z: the change in standard errors over images."
)


def print_results(found: dict[str, Any]) -> None:
    """Print scores with labels, then signs without labels. The untouched backbone is the first row."""
    console, rows = open_console(), found["rows"]
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
    judged = any("verdict" in row for row in rows)
    more = [*(["bytes"] if counts else []), *(["verdict"] if judged else [])]
    for heading in ("density", "rank", "agreement", "kept", "loss", *more):
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
            *([row["verdict"]["answer"] if "verdict" in row else ""] if judged else []),
        )
    console.print(table)
    for remark in found["remarks"]:
        console.print(remark)
    if judged:
        console.print(EVALUATED_LEGEND)


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print the numbers, the reason and last the answer of each."""
    console = open_console()
    console.print(VERDICT_LEGEND)
    for verdict in verdicts:
        title = f"{verdict.name}: {verdict.n_seen} images, {verdict.n_unseen or 'none'} unseen"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("against", overflow="fold")
        table.add_column("images")
        for sign in SHOWN:
            table.add_column(sign, justify="right")
            table.add_column("z", justify="right")
        _add_rows(table, "frozen", verdict.changes)
        for control in verdict.controls:
            _add_rows(table, control.name, {sign: {ALL: by[ALL]} for sign, by in control.beaten_by.items()})
        for name, change in verdict.labels.items():
            table.add_row(f"labels, {name}", str(change.n), _format_change(change), f"{change.z:+.1f}")
        console.print(table)
        if verdict.n_unreadable:
            console.print(f"{verdict.n_unreadable} images could not be read and were left out.")
        console.print(verdict.reason)
        console.print(f"verdict: {verdict.answer}")


def _add_rows(table: Table, name: str, changes: Changes) -> None:
    for part in changes.get(AGREEMENT, {}):
        cells: list[str] = []
        for sign in SHOWN:
            change = changes[sign][part]
            cells += [_format_change(change), f"{change.z:+.1f}"]
        table.add_row(name, part, *cells)


def _format_change(change: Change) -> str:
    return f"{change.before:.3f} -> {change.after:.3f} ± {change.error:.3f}"
