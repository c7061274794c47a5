"""What watches a run: the curve, the steps that are done, the objective's warning, ctrl-C."""

from __future__ import annotations

import csv
import io
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from smn_core.files import write_bytes
from training import masking
from training.learner import Learner
from training.objective import Watch

DENSITY_EVERY_STEPS = 5
MEAN_OVER_STEPS = 5
COLUMNS = ("step", "loss", "lr", "density")

OnStep = Callable[[int], None]
"""Called with the number of steps that a run has done."""


class Curve(pl.Callback):
    """Loss, learning rate and density by step. Checkpoints carry them, so a resumed run has one whole curve."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Learner)
        step = trainer.global_step
        # The scheduler is one step further already; this is the rate of the step that ended.
        factor = pl_module._schedule(step - 1) if step > pl_module.config.head_steps else 0.0
        row = {"step": step, "loss": float(outputs["loss"]), "lr": pl_module.config.lr * factor}
        if pl_module.config.learns_mask and (step % DENSITY_EVERY_STEPS == 0 or step == pl_module.total_steps):
            on, of = masking.count_on(pl_module.model)
            row["density"] = on / of
        self.rows.append(row)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def losses(self, head_steps: int) -> dict[str, float]:
        """Mean losses over `MEAN_OVER_STEPS` steps: the first ones after `head_steps`, and the last ones."""
        values = [row["loss"] for row in self.rows]
        begun = values[head_steps:] or values
        parts = {"loss_before": begun[:MEAN_OVER_STEPS], "loss_after": begun[-MEAN_OVER_STEPS:]}
        return {name: sum(part) / max(1, len(part)) for name, part in parts.items()}

    def write(self, path: Path) -> None:
        """Write the curve as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        write_bytes(path, text.getvalue().encode())


class TellSteps(pl.Callback):
    """Calls `on_step` with the number of steps done, at the start (a resumed run has some) and after every step."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._on_step(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._on_step(trainer.global_step)


class Warn(pl.Callback):
    """Passes every loss to the objective's watch, and prints its warning once."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.message: str | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.message is not None:
            return
        self.message = self._watch(float(outputs["loss"]))
        if self.message is not None:
            trainer.print(f"warning: {self.message}")


class StopCleanly(pl.Callback):
    """Ctrl-C ends the run after the present step, with a checkpoint. A second ctrl-C ends it at once."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._asked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._asked:
            trainer.save_checkpoint(self._checkpoint)
            raise KeyboardInterrupt

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if hasattr(self, "_before"):
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, _: int, __: FrameType | None) -> None:
        if self._asked:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self._asked = True
