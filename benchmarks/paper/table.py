"""The table: scores with paired standard errors, as JSON rows and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.paper.scores import FROZEN, MAP, MASK, MASK_AND_MAP, WHITENED, Right, Scored
from benchmarks.paper.wanted import CLUSTERS, FINETUNE, SUPERVISED
from training.evaluation.paired import Change, compare

PAPER: Mapping[str, Sequence[float]] = {
    "cifar10": (0.832, 0.921, 0.950, 0.962, 0.965, 0.914),
    "cifar100": (0.497, 0.656, 0.769, 0.798, 0.817, 0.925),
    "dtd": (0.693, 0.674, 0.714, 0.709, 0.736, 0.988),
    "eurosat": (0.754, 0.971, 0.983, 0.974, 0.977, 0.967),
    "flowers102": (0.728, 0.920, 0.983, 0.967, 0.987, 0.986),
    "sun397": (0.535, 0.518, 0.631, 0.482, 0.623, 0.944),
    "ucf101": (0.604, 0.549, 0.697, 0.628, 0.675, 0.957),
}
"""The paper's ResNet-50: frozen kNN, mask kNN, mask probe, supervised mask, full fine-tuning, density of the mask."""
Row = dict[str, Any]


def make_rows(scored: Sequence[Scored]) -> list[Row]:
    """A row for each space: accuracies, and their paired change against the frozen backbone and against a control.

    kNN and probe are paired by image, and few labels by draw: the change of a draw is that of its accuracy.
    """
    right = {s.facts["name"]: s.right for s in scored}
    rows = []
    for space in scored:
        name = space.facts["name"]
        row = {**space.facts, **_scores(space.right, right[FROZEN])}
        if (control := control_of(name)) in right:
            row["control"] = {"name": control, **_scores(space.right, right[control])}
        rows.append(row)
    return rows


def control_of(name: str) -> str:
    """What a space must beat besides the frozen backbone; "" where there is nothing."""
    if name == MASK_AND_MAP:
        return MAP
    return WHITENED if name.startswith(tuple(f"{clusters}: " for clusters in CLUSTERS)) else ""


def _scores(right: Right, before: Right) -> Row:
    found: Row = {}
    for probe in ("knn", "linear"):
        if probe in right and probe in before:
            found[probe] = compare(before[probe], right[probe]).as_json()
    keys = [key for key in right if key.startswith("few/") and key in before]
    for amount in dict.fromkeys(key.split("/")[1] for key in keys):
        drawn = [key for key in keys if key.split("/")[1] == amount]
        mine, theirs = (np.array([float(of[key].mean()) for key in drawn]) for of in (right, before))
        few = compare(theirs, mine).as_json()
        deviation = float(mine.std(ddof=1)) if len(mine) > 1 else 0.0
        few |= {"deviation": deviation, "wins": int((mine > theirs).sum()), "all": mine.tolist()}
        found.setdefault("few", {})[amount] = few
    return found


def make_page(name: str, facts: Mapping[str, Any], rows: Sequence[Row], failed: Mapping[str, str]) -> str:
    """The page of a set: a table for each label-efficient setting, and the row beside the paper's."""
    lines = [f"# {name}", "", " · ".join(f"{key}: {value}" for key, value in facts.items()), ""]
    lines += [
        "Test split. Changes are against the frozen backbone, in points; standard errors are paired, over images for",
        "kNN and probe, over draws for few labels. Bytes are those of a task's files.",
    ]
    lines += _unlabelled("## 1. No labels to adapt, all labels for the probe", [r for r in rows if r["setting"] == 1])
    lines += _few_labels([row for row in rows if row.get("few")])
    lines += _unlabelled("## 3. Semi-supervised cascades", [r for r in rows if r["setting"] == 3], control=True)
    lines += _beside_paper(name, rows)
    lines += [f"- **Not done: {what}**: {why}" for what, why in failed.items()]
    return "\n".join(lines) + "\n"


def _unlabelled(heading: str, rows: Sequence[Row], *, control: bool = False) -> list[str]:
    """Scores with all labels; beside them the density of masks, or with `control` nothing of it."""
    if not rows:
        return []
    more = "over the root whitened" if control else "density | over frozen + map"
    lines = ["", heading, "", f"| | kNN | change | probe | change | bytes | {more}, kNN / probe |"]
    lines.append("|---" * (7 if control else 8) + "|")
    for row in rows:
        first, against = row["name"] == FROZEN, row.get("control")
        scores = " | ".join(f"{row[p]['after']:.3f} | {'' if first else _change(row[p])}" for p in ("knn", "linear"))
        density = [] if control else [f"{row['density']:.6f}" if "density" in row else ""]
        over = f"{_change(against['knn'])} / {_change(against['linear'])}" if against else ""
        lines.append(f"| {' | '.join([row['name'], scores, format(row['bytes'], ','), *density, over])} |")
    return lines


def _few_labels(rows: Sequence[Row]) -> list[str]:
    amounts = list(dict.fromkeys(amount for row in rows for amount in row["few"]))
    if not amounts:
        return []
    lines = ["", "## 2. Few labels: a linear probe on draws of them", ""]
    heads = " | ".join(f"{_amount(amount)} | change | draws won" for amount in amounts)
    lines += [f"| | {heads} |", "|---" * (1 + 3 * len(amounts)) + "|"]
    for row in rows:
        cells = []
        for amount in amounts:
            few = row["few"].get(amount)
            told = f"{few['after']:.3f} ± {few['deviation']:.3f}" if few else ""
            compared = few and row["name"] != FROZEN
            cells += [told, *([_change(few), f"{few['wins']} of {few['n']}"] if compared else ["", ""])]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def _beside_paper(name: str, rows: Sequence[Row]) -> list[str]:
    """The row of the paper's table, and the paper's own where it has the set."""
    found = {row["name"]: row for row in rows}

    def score(space: str, probe: str) -> str:
        return f"{found[space][probe]['after']:.3f}" if space in found else ""

    labelled = {part: next((n for n in found if n.startswith(begin) and n.endswith("all labels")), "")
                for part, begin in ((SUPERVISED, "supervised"), (FINETUNE, "full"))}  # fmt: skip
    density = f"{found[MASK]['density']:.6f}" if MASK in found else ""
    mine = [score(FROZEN, "knn"), score(MASK, "knn"), score(MASK, "linear"),
            *(score(labelled[part], "linear") for part in (SUPERVISED, FINETUNE)), density]  # fmt: skip
    lines = ["", "## The paper's row", "",
             "| | frozen kNN | mask kNN | mask probe | supervised mask | full fine-tuning | density |",
             "|---" * 7 + "|", f"| here | {' | '.join(mine)} |"]  # fmt: skip
    if name in PAPER:
        lines.append(f"| the paper, ResNet-50 | {' | '.join(f'{value:.3f}' for value in PAPER[name])} |")
    return [*lines, "", "Supervised mask and fine-tuning are scored here by a linear probe of their embeddings.", ""]


def _amount(text: str) -> str:
    return f"{text} a class" if float(text) >= 1 else f"{100 * float(text):g} % of the labels"


def _change(change: Mapping[str, Any] | Change) -> str:
    told = change.as_json() if isinstance(change, Change) else change
    return f"{100 * told['change']:+.1f} ± {100 * told['error']:.1f}"
