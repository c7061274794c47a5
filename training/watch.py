"""What watches a run: the curve, the steps that are done, the objective's warning, early checkpoints, ctrl-C."""

from __future__ import annotations

import csv
import io
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from smn_core.files import write_bytes
from smn_core.verbs.stderr import note
from training import masking
from training.learner import Learner
from training.objective import Watch
from training.progress import EVERY_S, Pace, Stopped

EARLY_STEPS, EARLY_S = 5, 60.0
"""A first checkpoint is saved after so many steps or so many seconds, whichever comes first."""

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


class LogSteps(pl.Callback):
    """Where there is no terminal: a line at the start, at most one each `EVERY_S`, and one at the end."""

    def __init__(self, say: Callable[[str], None] = note, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        self._pace, self._began, self._first = Pace(self._clock), self._clock(), trainer.global_step
        self._pace.is_due()
        self._loss = float("nan")
        self._say(f"step {self._first} of {pl_module.total_steps}; a line follows each {EVERY_S:.0f} s at most")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Learner)
        self._loss = float(outputs["loss"])
        if trainer.global_step < pl_module.total_steps and self._pace.is_due():
            self._say(self._describe(trainer.global_step, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        if trainer.global_step > self._first:
            self._say(self._describe(trainer.global_step, pl_module))

    def _describe(self, step: int, learner: Learner) -> str:
        parts = [f"step {step} of {learner.total_steps}", f"loss {self._loss:.4f}"]
        if learner.config.learns_mask:
            on, of = masking.count_on(learner.model)
            parts.append(f"density {on / of:.6f}")
        took_s = self._clock() - self._began
        left_s = took_s / (step - self._first) * (learner.total_steps - step)
        return ", ".join([*parts, f"{left_s:.0f} s left" if step < learner.total_steps else f"{took_s:.0f} s"])


class SaveEarly(pl.Callback):
    """Saves one checkpoint long before the recipe's first one, so that a stop soon after the start costs little."""

    def __init__(self, checkpoint: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._checkpoint, self._clock = checkpoint, clock
        self._saved = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began, self._first = self._clock(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._saved:
            return
        # Processes that learn together save together, and their clocks differ.
        late = trainer.world_size == 1 and self._clock() - self._began >= EARLY_S
        if late or trainer.global_step - self._first >= EARLY_STEPS:
            self._saved = True
            trainer.save_checkpoint(self._checkpoint)


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
    """Ctrl-C or SIGTERM ends the run after the present step, with a checkpoint. A second one ends it at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._before: dict[int, Any] = {}
        self._step = self._total = 0
        self.asked_by: int | None = None
        """The number of the signal, once one came."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        self._step, self._total = trainer.global_step, pl_module.total_steps
        self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step
        if self.asked_by is not None:
            trainer.save_checkpoint(self._checkpoint)
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back. After an exception Lightning does it, which kept all handlers at the start."""
        for number, before in self._before.items():
            signal.signal(number, before)

    def stopped(self) -> Stopped:
        """What the run raises after a stop."""
        return Stopped(self.asked_by or signal.SIGINT, self._step, self._total)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked_by is not None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.asked_by = number
