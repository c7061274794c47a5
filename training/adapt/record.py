"""The runs of a race, kept in `FILE.run/race.json`, so that the same command goes on after ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smn_core.files import write_bytes
from training.adapt.score import Score

RECORD = "race.json"


@dataclass(frozen=True)
class Run:
    """One finished run of a candidate.

    Args:
        candidate: its name.
        file: of the mask, in the folder of the record.
        steps: that were taken.
        total_steps: of this run and of those that it went on from.
        seconds: of this run, start and end included.
        neighbours, evidence: the two numbers of its `Score`.
        n_off: weights that are OFF.
    """

    candidate: str
    file: str
    steps: int
    total_steps: int
    seconds: float
    neighbours: float
    evidence: float
    n_off: int

    @property
    def score(self) -> float:
        """Higher is better."""
        return Score(self.neighbours, self.evidence).value


@dataclass
class Record:
    """All finished runs under a plan. What another plan left is forgotten."""

    folder: Path
    plan: Mapping[str, Any]
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, plan: Mapping[str, Any]) -> Record:
        """The record of an earlier start under an equal plan, or an empty one."""
        record = cls(folder, plan)
        try:
            found = json.loads((folder / RECORD).read_text())
            if found["plan"] == plan:
                record.runs = [Run(**run) for run in found["runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or it was cut off: the race begins anew
        record.runs = [run for run in record.runs if record.path(run).exists()]
        record.save()
        return record

    def add(self, run: Run) -> None:
        """Keep a run, on disk too."""
        self.runs.append(run)
        self.save()

    def save(self) -> None:
        """Write the record; its file marks the folder as begun, also while no run is finished."""
        text = json.dumps({"plan": self.plan, "runs": [asdict(run) for run in self.runs]}, indent=2)
        write_bytes(self.folder / RECORD, f"{text}\n".encode())

    def path(self, run: Run) -> Path:
        return self.folder / run.file

    def best_of(self, candidate: str) -> Run | None:
        """The best run of a candidate: what goes on from a worse one is not gone on with."""
        return max((run for run in self.runs if run.candidate == candidate), key=lambda run: run.score, default=None)

    @property
    def best(self) -> Run | None:
        """The run with the highest score that switched a weight off."""
        return max((run for run in self.runs if run.n_off), key=lambda run: run.score, default=None)
