"""What verbs print: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from smn_core.verbs.console import open_console
from smn_core.verbs.texts import visible


def as_json(value: object) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2))


def images_progress(total: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """A progress bar on stderr that counts images; without a total it only counts."""
    return progress("images", total)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields a function that is called with how many more are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # An error after it is one line: the bar goes when it is done, and a log never sees it.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table on stdout."""
    shown = Table(box=None, pad_edge=False)
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*map(visible, row))
    open_console().print(shown)


def mask(found: dict[str, Any]) -> None:
    """The tables of `smn inspect`."""
    console = open_console()
    sizes = found["sizes"]
    console.print(_pairs("mask", _identity(found)))
    console.print(
        _pairs(
            "bytes",
            {
                "file": f"{sizes['file_bytes']:,} ({sizes['codec']}): bits {sizes['bits_bytes']:,}, "
                f"state {sizes['state_bytes']:,}, map {sizes['affine_bytes']:,}, head {sizes['head_bytes']:,}, "
                f"{_rest(sizes)}header {sizes['header_bytes']:,}",
                "bits per weight": f"{sizes['bits_per_weight']:.5f} (whole file; 1 uncoded)",
                "compression": f"{sizes['smaller_than_32_bit']:,.0f}x against 32-bit weights, "
                f"{sizes['smaller_than_16_bit']:,.0f}x against 16-bit",
            },
        )
    )
    if found["density"] is not None:
        console.print(_densities("stage", found["stages"]))
        console.print(_densities("tensor", found["tensors"]))
    if "codings" in found:
        _codings(console, found["codings"], sizes["raw_bits_bytes"])
    if "difference" in found:
        _difference(console, found["difference"])


def cascade(found: dict[str, Any]) -> None:
    """What `smn inspect` says of a cascade."""
    rows = {key: str(found[key]) for key in ("file", "digest", "fingerprint", "root")}
    rows |= {f"expert {number}": digest for number, digest in enumerate(found["experts"], 1)}
    rows |= {"fusion": found["fusion"], "default mode": found["mode"]}
    for mode, tensors in found["modes"].items():
        rows[mode] = ", ".join(f"{name} {what}" for name, what in tensors.items()) or "as it is"
    rows["router"] = ", ".join(f"{name} {shape}" for name, shape in (found["router"] or {}).items()) or "none"
    rows["bytes"] = f"{found['file_bytes']:,}: fusion {found['fusion_bytes']:,}, router {found['router_bytes']:,}" + (
        f"; with masks {found['total_bytes']:,}" if "total_bytes" in found else ""
    )
    for name, size in found.get("mask_bytes", {}).items():
        rows[name] = f"{size:,} bytes"
    open_console().print(_pairs("cascade", rows | found["metadata"]))


def _identity(found: dict[str, Any]) -> dict[str, str]:
    rows = {
        "file": found["file"],
        "digest": found["digest"],
        "architecture": found["architecture"] + (f" {json.dumps(found['args'])}" if found["args"] else ""),
        "fingerprint": found["fingerprint"],
        "layout": found["layout"],
        **({"parent": found["parent"]} if found["parent"] else {}),
        "density": "in the coded bits, which --weights FILE decodes"
        if found["density"] is None
        else f"{found['density']:.6f} ({found['off']:,} of {found['weights']:,} OFF)",
        "state": f"{len(found['state'])} buffers" if found["state"] else "none",
        "map": "{form}, {precision}, {bytes:,} bytes".format(**found["affine"]) if found["affine"] else "none",
        "head": f"{len(found['classes'])} classes" if found["classes"] else "none",
        "preprocess": json.dumps(found["preprocess"]) if found["preprocess"] else "not stated",
    }
    return rows | found["metadata"]


def _pairs(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(visible(key), visible(value))
    return table


def _densities(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"density by {title}", title_justify="left", box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    for name in ("weights", "OFF", "density"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["name"], f"{row['weights']:,}", f"{row['off']:,}", f"{row['density']:.6f}")
    return table


def _rest(sizes: dict[str, Any]) -> str:
    """State, map and head where they are coded together."""
    if not sizes["rest_bytes"]:
        return ""
    names = {"state": "state", "affine": "map", "head": "head"}
    within = ", ".join(f"{names[part]} {n:,}" for part, n in sizes["uncoded_bytes"].items() if n)
    return f"together {sizes['rest_bytes']:,} ({within} uncoded), "


def _codings(console: Console, found: dict[str, Any], raw: int) -> None:
    rows = {f"as {name}": f"{n:,} bytes ({n / raw:.5f} bits a weight)" for name, n in found["coded"].items()}
    rows |= {f"entropy by {context}": f"{n:,.0f} bytes" for context, n in found["entropy"].items()}
    console.print(_pairs("the bits in other codes", rows))
    contexts = list(found["entropy"])
    table = Table(title="entropy by stage, bytes", title_justify="left", box=None, pad_edge=False)
    table.add_column("stage", overflow="fold")
    for context in contexts:
        table.add_column(f"by {context}", justify="right")
    for stage in found["stages"]:
        table.add_row(stage["name"], *(f"{stage['entropy'][context]:,.0f}" for context in contexts))
    console.print(table)


def _difference(console: Console, found: dict[str, Any]) -> None:
    table = Table(title=f"against {found['other']}", title_justify="left", box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for name in ("differ", "fraction", "switched on", "switched off"):
        table.add_column(name, justify="right")
    for row in found["tensors"]:
        table.add_row(
            row["name"],
            f"{row['different']:,}",
            f"{row['fraction']:.6f}",
            f"{row['switched_on']:,}",
            f"{row['switched_off']:,}",
        )
    console.print(table)
    console.print(f"{found['different']:,} weights differ ({found['fraction']:.6f})")
    if not found["same_backbone"]:
        console.print("The two masks are for different weights of one architecture.")
