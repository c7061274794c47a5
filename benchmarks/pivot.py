"""The tables of docs/performance.md: what differs between rows becomes rows and columns, what does not the caption."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.asked import Asked, Table
from benchmarks.kept import Row, figure, latest, told
from benchmarks.sources import Sources
from benchmarks.traffic import LAWS

MODELS = {"vit_tiny_patch16_224": "ViT-Tiny", "resnet50": "ResNet-50", "vit_base_patch32_224": "ViT-B/32"}
PEERS = {
    "fastapi": "FastAPI", "litserve": "LitServe", "ray serve": "Ray Serve", "onnx runtime": "ONNX Runtime",
    "openvino": "OpenVINO", "openvino bf16": "OpenVINO bf16", "best of them": "the best of them", "smn": "SMN",
    "smn bf16": "SMN bf16",
}  # fmt: skip
VARIANTS = {
    "swap, 1 thread": "1 thread", "swap, 2 threads": "2 threads", "1 masks": "1 mask", "lora": "LoRA",
    "lora, merged": "LoRA, merged", "lora, set_adapter": "LoRA, set_adapter",
}  # fmt: skip
NAMES = MODELS | PEERS | VARIANTS
MISSED = "✗"
WIDE = 0.25
"""A spread of more than this part of the median is shown."""


@dataclass
class Cell:
    """A row in its place, the questions that it answers, and what tells it from others."""

    row: Row
    told: Mapping[str, Any]
    questions: list[Asked] = field(default_factory=list)

    def text(self, always: bool = False) -> str:
        """The median, its spread where that matters or `always`, and a mark where it misses an aim."""
        median, low, high = (self.row[name] for name in ("p50", "p20", "p80"))
        aims = [aim for asked in self.questions for aim in (asked.most, asked.least) if aim is not None]
        matters = always or high - low > WIDE * abs(median) or any(low < aim < high for aim in aims)
        text = figure(median)
        if self.row["n"] > 1 and matters:
            text += f" ({figure(low)}–{figure(high)})"  # noqa: RUF001 - an en dash is how a span reads
        return text if all(asked.met(median) for asked in self.questions) else f"{text} {MISSED}"


def lines_of(table: Table, rows: Sequence[Row]) -> list[str]:
    """The table in Markdown, what it is before it and where it was measured after it; a line for what was not."""
    cells = _cells(table, rows)
    absent = [asked for asked in table.questions if not latest(asked, rows)]
    if not cells:
        return _not_measured(absent, all_of_it=True)
    sources = Sources([cell.row for cell in cells])
    grid = [f"The median is {cells[0].text(always=True)}."] if len(cells) == 1 else _grid(table, cells, sources)
    lines = [_caption(table, cells), *([""] if len(cells) > 1 else []), *grid, "", sources.text()]
    return lines + (["", *_not_measured(absent, all_of_it=False)] if absent else [])


def name_of(value: Any) -> str:
    """A parameter's value for people."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NAMES.get(value, value) if isinstance(value, str) else str(value)


def _cells(table: Table, rows: Sequence[Row]) -> list[Cell]:
    """Every row once; where questions have different figures, once for each."""
    found: dict[tuple[str, int], Cell] = {}
    for asked in table.questions:
        for row in latest(asked, rows):
            key = (asked.short if table.by_question else "", id(row))
            question = {"question": asked.short} if table.by_question else {}
            all_told = question | {"variant": row["variant"]} | told(row) | {"on": row["device"]}
            found.setdefault(key, Cell(row, all_told)).questions.append(asked)
    return list(found.values())


def _grid(table: Table, cells: Sequence[Cell], sources: Sources) -> list[str]:
    """Rows and columns; where there are several sources, a row names its own, and a cell that has another does too."""
    shorts = [asked.short for asked in table.questions] if table.by_question else []
    aims = {asked.short: asked.aim for asked in table.questions if asked.aim != "known"}
    down = [name for name in _differing(cells) if name not in table.columns and not _follows(name, cells)]
    across = [name for name in table.columns if any(name in cell.told for cell in cells)]
    places = {(_values(cell, down), _values(cell, across)): cell for cell in cells}
    assert len(places) == len(cells), f"{table.title}: two rows in one place"
    sides, tops = (
        sorted({place[part] for place in places}, key=lambda values: _order(values, shorts)) for part in (0, 1)
    )
    lines = [
        [*("" if name in ("question", "variant") else name for name in down), *(_head(across, top) for top in tops)]
    ]
    for side in sides:
        row = {top: places[side, top] for top in tops if (side, top) in places}
        mine = Counter(sources.letter(cell.row) for cell in row.values()).most_common(1)[0][0]
        labels = [name_of(value) for value in side]
        if down[:1] == ["question"] and side[0] in aims:
            labels[0] += f" (aim {aims[side[0]]})"
        found = [f"{row[top].text()}{sources.mark(row[top].row, mine)}" if top in row else "" for top in tops]
        lines.append([*labels, *found, *([mine] if sources.several else [])])
    if sources.several:
        lines[0].append("measured")
    lines.insert(1, ["---"] * len(lines[0]))
    return [f"| {' | '.join(line)} |" for line in lines]


def _caption(table: Table, cells: Sequence[Cell]) -> str:
    """What a figure is, its aim where no row tells it, and what all rows have in common."""
    differing = _differing(cells)
    aims = [(f"{asked.short} {asked.where}".strip(), asked.aim) for asked in table.questions if asked.aim != "known"]
    aim = "; ".join(f"{short} {text}" if len(aims) > 1 else text for short, text in aims)
    aim = f"Aim{'s' if len(aims) > 1 else ''}: {aim}"
    in_rows = "question" in differing and "question" not in table.columns
    names = [name for name in cells[0].told if name not in (*differing, *table.columns, "question", "variant", "on")]
    common = [f"{name} {name_of(cells[0].told[name])}" for name in names]
    repeats = sorted({cell.row["n"] for cell in cells})
    many = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
    common.append(f"{many} repetition{'' if many == '1' else 's'}")
    parts = [table.figures, aim if aims and not in_rows else "", ", ".join(common)]
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts if part)


def _differing(cells: Sequence[Cell]) -> list[str]:
    """The names of what is not the same in all rows, in the order that rows name them."""
    names = dict.fromkeys(name for cell in cells for name in cell.told)
    return [name for name in names if len({cell.told.get(name) for cell in cells}) > 1]


def _values(cell: Cell, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(cell.told.get(name) for name in names)


def _order(values: tuple[Any, ...], shorts: Sequence[str]) -> list[tuple[int, float, str]]:
    """Questions, models and laws in their own order, then by the number that a value begins with, then by name."""
    known = [*shorts, *MODELS, *LAWS]
    keys = []
    for value in values:
        number = re.match(r"[\d.]+", str(value))
        if value in known:
            keys.append((0, float(known.index(value)), ""))
        else:
            keys.append((1, float(number[0]) if number else 0.0, str(value)))
    return keys


def _follows(name: str, cells: Sequence[Cell]) -> bool:
    """Whether it is a variant that the question alone tells."""
    variants = {(cell.told.get("question"), cell.told["variant"]) for cell in cells}
    return name == "variant" and len(variants) == len({question for question, _ in variants}) > 1


def _head(names: Sequence[str], values: tuple[Any, ...]) -> str:
    """The head of a column; a number or an absent value says nothing without its name."""
    parts = [
        name_of(value) if isinstance(value, str) else f"{name} {name_of(value)}"
        for name, value in zip(names, values, strict=True)
    ]
    return ", ".join(parts)


def _not_measured(absent: Sequence[Asked], *, all_of_it: bool) -> list[str]:
    """One line for all that have the same reason."""
    reasons: dict[str, list[Asked]] = {}
    for asked in absent:
        needs = f", needs {asked.needs}" if asked.needs else ""
        reasons.setdefault(f"{needs}: `smn bench --only {asked.run}`.", []).append(asked)
    if all_of_it:
        return [f"Not measured yet{reason}" for reason in reasons]
    return [
        f"Not measured yet ({'; '.join(asked.short for asked in found)}){reason}" for reason, found in reasons.items()
    ]
