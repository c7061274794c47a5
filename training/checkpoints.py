"""Checkpoints of runs: where they lie, how they are read, and how they are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from smn_core.errors import InvalidWeights
from smn_core.files import replacing
from smn_core.verbs.recorded import run_folder

CHECKPOINT, README = "last.ckpt", "README.md"


def is_finished(out: Path) -> bool:
    """Whether the run that writes `out` has ended: it writes its README last."""
    return out.exists() and (run_folder(out) / README).exists()


def read_checkpoint(path: Path, mend: str = "") -> dict[str, Any]:
    """Read a checkpoint of `smn train`. Its `smn` identifies the run, `global_step` is the number of steps done.

    `mend` ends the message about a damaged one, with what to do about it.

    Raises:
        InvalidWeights: the file is missing or damaged, or not from `smn train`.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        int(checkpoint["global_step"])
        dict(checkpoint["smn"])
    except FileNotFoundError as error:
        raise InvalidWeights(f"there is no checkpoint {path}") from error
    except Exception as error:  # unpickling damaged bytes raises anything
        empty = not path.stat().st_size
        reason = "it is empty" if empty else (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidWeights(f"{path} is not a checkpoint of smn train: {reason}{mend}") from error
    return checkpoint


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, then renames it: a full disk or a kill leaves the old one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as temporary:
                super().save_checkpoint(checkpoint, temporary, storage_options)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
