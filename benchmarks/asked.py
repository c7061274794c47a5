"""A question of docs/performance.md: the rows that answer it and its aim; and a table of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A question: rows of `bench` with this metric, and these variants and parameters where given.

    `bench` is the row's own word; `run` the name by which `smn bench --only` measures it. `most` or `least` is the aim
    for the median; neither, where the figure is only to be known. `short` names it within its table, `where` which
    part of that it is. `needs` is what not every machine has.
    """

    title: str
    run: str
    bench: str
    metric: str
    most: float | None = None
    least: float | None = None
    variants: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    short: str = ""
    where: str = ""
    needs: str = ""

    @property
    def aim(self) -> str:
        if self.most is not None:
            return f"<= {self.most:g}"
        return f">= {self.least:g}" if self.least is not None else "known"

    def met(self, median: float) -> bool:
        return (self.most is None or median <= self.most) and (self.least is None or median >= self.least)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether a row answers it."""
        return (
            (row["bench"], row["metric"]) == (self.bench, self.metric)
            and (not self.variants or row["variant"] in self.variants)
            and all(row["params"].get(key) == value for key, value in self.params.items())
        )


@dataclass(frozen=True)
class Table:
    """A table of the page: what `columns` name stands in columns, whatever else differs between its rows in rows.

    A column is a parameter, "variant" or "question" (the short name). `figures` says what a figure is. `by_question`:
    its questions have different figures, so the short name is among what differs.
    """

    title: str
    figures: str
    columns: tuple[str, ...]
    questions: tuple[Asked, ...]
    by_question: bool = False
