"""What watches a run: the curve, a loss that is stuck, ctrl-C."""

from __future__ import annotations

import csv
import io
import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from smn_core.files import write_bytes
from training import masking
from training.learner import Learner

DENSITY_EVERY_STEPS = 5
STUCK_AFTER_STEPS = 30
STUCK_WITHIN = 0.01
MEAN_OVER_STEPS = 5
COLUMNS = ("step", "loss", "lr", "density")


class Curve(pl.Callback):
    """Loss, learning rate and density by step; saved in checkpoints, so a resumed run has one whole curve."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Learner)
        step = trainer.global_step
        # The scheduler has moved on already: this is the rate that the step used.
        factor = pl_module._schedule(step - 1) if step > pl_module.config.head_steps else 0.0
        row = {"step": step, "loss": float(outputs["loss"]), "lr": pl_module.config.lr * factor}
        if pl_module.learns_mask and (step % DENSITY_EVERY_STEPS == 0 or step == pl_module.total_steps):
            on, of = masking.densities(pl_module.model)
            row["density"] = on / of
        self.rows.append(row)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def losses(self, head_steps: int) -> dict[str, float]:
        """Mean losses over `MEAN_OVER_STEPS` steps as the objective's weights begin to move, and at the end."""
        values = [row["loss"] for row in self.rows]
        begun = values[head_steps:] or values
        parts = {"loss_before": begun[:MEAN_OVER_STEPS], "loss_after": begun[-MEAN_OVER_STEPS:]}
        return {name: sum(part) / max(1, len(part)) for name, part in parts.items()}

    def write(self, path: Path) -> None:
        """The curve as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        write_bytes(path, text.getvalue().encode())


class Steps(pl.Callback):
    """Tells how many steps are done, first those of a run that is resumed."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard = heard

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._heard(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._heard(trainer.global_step)


class StuckAtUniform(pl.Callback):
    """Says once, in words, when a SwAV loss sits at ln(K): every image then goes to every prototype alike."""

    def __init__(self) -> None:
        self.message: str | None = None
        self._near = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Learner)
        if pl_module.swav is None or self.message is not None:
            return
        uniform = math.log(pl_module.config.swav.prototypes)
        near = abs(float(outputs["loss"]) - uniform) < STUCK_WITHIN * uniform
        self._near = self._near + 1 if near else 0
        if self._near >= STUCK_AFTER_STEPS:
            self.message = (
                f"the loss has been at ln(K) = {uniform:.3f} for {self._near} steps: every image is assigned to every "
                "prototype alike and nothing is learned. Try --set swav.epsilon=0.03, gentler crops "
                "(--set swav.crops.big_scale=[0.4,1.0]), --set swav.centre=true, prototypes frozen for longer "
                "(--set swav.frozen_steps=-1), a shorter queue or a lower learning rate. The run goes on."
            )
            trainer.print(f"warning: {self.message}")


class StopCleanly(pl.Callback):
    """Ctrl-C ends the run after the step in hand, with a checkpoint; a second one ends it at once."""

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
