"""The seven sentences that docs/performance.md opens with; every figure in them is computed from the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.asked import Asked
from benchmarks.beside import TO_IT, VIT
from benchmarks.kept import Row, figure, latest, span
from benchmarks.pivot import MODELS, PEERS, name_of
from benchmarks.questions import ASKED, RATIO

Found = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Sentence:
    """What it answers, the rows that it needs by its own names, and how it says them."""

    about: str
    needs: Mapping[str, Asked]
    say: Callable[[Found], str]

    def text(self, rows: Sequence[Row]) -> str:
        """The sentence, or that its rows are not there."""
        found = {name: latest(asked, rows) for name, asked in self.needs.items()}
        if all(found.values()):
            return f"**{self.about}** {self.say(found)}"
        runs = sorted({self.needs[name].run for name, there in found.items() if not there})
        return f"**{self.about}**: some of it is not measured, `smn bench --only {','.join(runs)}`."


def sentences(rows: Sequence[Row]) -> list[str]:
    """The six of what was measured, and the one of what is not good or not measured."""
    return [*(sentence.text(rows) for sentence in SENTENCES), _not_good(rows)]


def _asked(bench: str, metric: str, *variants: str, run: str = "", **params: object) -> Asked:
    return Asked("", run or bench, bench, metric, variants=variants, params=params)


def _in_place(found: Found) -> str:
    batches = [row["params"]["batch"] for row in found["hot"]]
    models = _models(found["hot"])
    return (
        f"gives {_p50(found['hot'])} times the images a second of plain timm, over {len(models)} "
        f"model{'' if len(models) == 1 else 's'} and batches of {min(batches)} to {max(batches)}."
    )


def _swap(found: Found) -> str:
    times = ", ".join(
        f"{span([row['p50'] for row in found['time'] if row['params']['model'] == model])} ms on {name_of(model)}"
        for model in _models(found["time"])
    )
    return (
        f"takes {_p50(found['ratio'])} times as long as a plain copy of the same bytes ({times}). Where nearly all "
        f"weights are ON, a patch takes {_p50(found['patch'])} of the time of a whole swap."
    )


def _hundred(found: Found) -> str:
    return (
        f"in one stream give {_percent(found['zipf'])} of one mask's images a second when few of them are popular "
        f"(zipf:1.5), and {_percent(found['distinct'])} when every image of a batch asks for another mask."
    )


def _bytes(found: Found) -> str:
    copies = _where(found, "memory", *COPIES), _where(found, "disk", *COPIES)
    lora = found["lora memory"][0]["p50"], found["lora disk"][0]["p50"]
    mine = _where(found, "memory", "smn"), _where(found, "disk", "smn")
    dense = found["dense"][0]
    return (
        f"of {name_of(VIT)} takes {_span_bytes(mine[0])} of a server's memory and {_span_bytes(mine[1])} of disk where "
        f"nearly all weights are ON ({as_bytes(dense['p50'])} of memory at density {dense['params']['density']}). "
        f"A full copy takes {_span_bytes(copies[0])} of memory and {_span_bytes(copies[1])} of disk, a LoRA adapter "
        f"{as_bytes(lora[0])} and {as_bytes(lora[1])}."
    )


def _peers(found: Found) -> str:
    each = {peer: [row for row in found["peers"] if row["variant"] == peer] for peer in COPIES}
    told = [f"{PEERS[peer]} {_p50(rows)}" for peer, rows in each.items() if rows]
    tasks = [row["params"]["tasks"] for row in found["peers"]]
    return (
        f"keep a full copy of the model for each of {min(tasks)} to {max(tasks)} tasks. SMN's images a second "
        f"over theirs: {', '.join(told)}. In process, over those of LoRA adapters: {_p50(found['lora'])}."
    )


def _instead(found: Found) -> str:
    """What a user would pick for one model, and what they would have of it."""
    best = [
        f"{_p50(rows)} on {name_of(model)}"
        for model in _models(found["best"])
        if (rows := [row for row in found["best"] if row["params"]["model"] == model])
    ]
    return (
        f"is ONNX Runtime or OpenVINO with a full copy of the model. Images a second of a hot mask, in process, over "
        f"those of the better one in float32: {', '.join(best)}. Over those of OpenVINO in bfloat16: "
        f"{_p50(found['half'])}. The better one computes at {_p50(found['limit'])} of the rate of the core's best "
        f"matrix product."
    )


def _not_good(rows: Sequence[Row]) -> str:
    """How many aims are missed, the furthest of them, and what nobody has measured."""
    answers = {asked.title: latest(asked, rows) for asked in ASKED}
    measured = [asked for asked in ASKED if answers[asked.title]]
    held = [asked for asked in measured if asked.aim != "known"]
    worst = [(asked, _worst(asked, answers[asked.title])) for asked in held]
    missed = [(asked, median) for asked, median in worst if not asked.met(median)]
    furthest = sorted(missed, key=lambda pair: -_distance(*pair))[:FURTHEST]
    told = ", ".join(f"*{asked.title}* ({figure(median)}, aim {asked.aim})" for asked, median in furthest)
    rows_shown = [row for asked in measured for row in answers[asked.title]]
    devices = sorted({row["device"].removeprefix("cpu: ") for row in rows_shown})
    absent = [asked for asked in ASKED if not answers[asked.title]]
    needs = sorted({asked.needs for asked in absent if asked.needs})
    wanting = sum(bool(asked.needs) for asked in absent)
    some = ", " if wanting == len(absent) else f", {wanting} of them "
    parts = [f"{len(missed)} of {len(held)} aims are missed in at least one case"]
    parts[0] += f", the furthest: {told}" if told else ""
    if absent:
        parts.append(
            f"{len(absent)} questions are not measured" + (f"{some}for want of {' and '.join(needs)}" if needs else "")
        )
    if devices:
        parts.append(f"every figure is of {' or '.join(devices)}")
    told_all = " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)
    return f"**Where it is not good, or not known.** {told_all}"


def _worst(asked: Asked, rows: Sequence[Row]) -> float:
    medians = [float(row["p50"]) for row in rows]
    return max(medians) if asked.most is not None else min(medians)


def _distance(asked: Asked, worst: float) -> float:
    """How many times its aim a figure is, or the other way round: above 1 where it misses. An aim of 0 has no times."""
    over, under = (worst, asked.most) if asked.most is not None else (asked.least or 0.0, worst)
    return over / under if under else float("inf")


def _models(rows: Sequence[Row]) -> list[str]:
    """The models of rows, the known ones in the order of the tables."""
    there = {row["params"]["model"] for row in rows}
    return [*(model for model in MODELS if model in there), *sorted(there - set(MODELS))]


def _percent(rows: Sequence[Row]) -> str:
    return f"{span([100 * row['p50'] for row in rows])} %"


def _p50(rows: Sequence[Row]) -> str:
    return span([row["p50"] for row in rows])


def _where(found: Found, name: str, *variants: str) -> list[float]:
    return [row["p50"] for row in found[name] if row["variant"] in variants]


def _span_bytes(values: Sequence[float]) -> str:
    low, high = as_bytes(min(values)), as_bytes(max(values))
    return low if low == high else f"{low} to {high}"


def as_bytes(value: float) -> str:
    """Bytes in decimal units: 7.85 kB, 22.1 MB."""
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{figure(value)} {unit}"
        value /= 1000
    return f"{figure(value)} GB"


COPIES = ("fastapi", "litserve", "ray serve", "onnx runtime", "openvino")
FURTHEST = 3
SENTENCES = (
    Sentence("A mask in place", {"hot": _asked("hot", "images/s, ratio to plain timm")}, _in_place),
    Sentence(
        "A swap",
        {
            "ratio": _asked("swap", "ratio to copy"),
            "time": _asked("swap", "time", "swap, 1 thread", "swap, 2 threads"),
            "patch": _asked("engine swap", "ratio to slot", "patch", run="patch"),
        },
        _swap,
    ),
    Sentence(
        "100 masks",
        {
            "zipf": _asked("traffic", RATIO, "zipf:1.5", masks=100),
            "distinct": _asked("traffic", RATIO, "distinct", masks=100),
        },
        _hundred,
    ),
    Sentence(
        "One more mask",
        {
            "memory": _asked("peers", "memory a task", model=VIT),
            "disk": _asked("peers", "disk a task", model=VIT),
            "lora memory": _asked("lora", "memory a task", "lora", model=VIT),
            "lora disk": _asked("lora", "disk a task", "lora", model=VIT),
            "dense": _asked("many", "bytes a cached mask", "process, grown", model=VIT, density=0.5),
        },
        _bytes,
    ),
    Sentence(
        "What a user would pick instead",
        {
            "best": _asked("runtimes", f"images/s, {TO_IT}", "best of them", dtype="float32"),
            "half": _asked("runtimes", f"images/s, {TO_IT}", "best of them", dtype="bfloat16"),
            "limit": _asked("runtimes", "FLOP/s, over the best product's", "best of them", dtype="float32"),
        },
        _instead,
    ),
    Sentence(
        "Other servers",
        {"peers": _asked("peers", f"images/s, {TO_IT}"), "lora": _asked("lora", f"images/s, {TO_IT}")},
        _peers,
    ),
)
