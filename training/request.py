"""What a user asks of a run, and what the run says in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smn_core.mask import TaskMask
from smn_core.spec import BackboneSpec
from training.checkpoints import folder_of
from training.recipes import Config


@dataclass(frozen=True)
class Request:
    """What a user asks of a run. `labels`: a fraction or a number per class, None for all.

    `start` is a mask file whose run (checkpoint) lies beside it: scores, head, prototypes and normalisation state go on
    from there instead of from the untouched backbone. `only` are the images of the split to learn from, all if None.
    """

    spec: BackboneSpec
    data: str
    config: Config
    out: Path
    split: str = "train"
    seed: int = 0
    labels: float | None = None
    resume: bool = False
    overwrite: bool = False
    workers: int = 1
    command: Sequence[str] = ()
    start: Path | None = None
    only: tuple[int, ...] | None = None

    @property
    def folder(self) -> Path:
        return folder_of(self.out)


@dataclass(frozen=True)
class Result:
    """What a run left: its output, the mask if it learned one, how long it took, what it had to say."""

    out: Path
    mask: TaskMask | None
    seconds: float
    final_loss: float
    skipped: tuple[str, ...]
    warning: str | None
