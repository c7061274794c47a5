"""Checkpoints of runs: where they are, how they are read, and written so that none is ever half there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from smn_core.errors import InvalidWeights
from smn_core.files import replacing

CHECKPOINT, README = "last.ckpt", "README.md"


def folder_of(out: Path) -> Path:
    """Where the run that writes `out` keeps its checkpoint, curve and plots."""
    return out.with_name(f"{out.stem}.run")


def is_finished(out: Path) -> bool:
    """Whether the run that writes `out` came to its end: its README is the last that it writes."""
    return out.exists() and (folder_of(out) / README).exists()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of `smn train`; `smn` says what run it is of, `global_step` how far it came.

    Raises:
        InvalidWeights: it is not there, damaged, or no checkpoint of ours.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        int(checkpoint["global_step"])
        dict(checkpoint["smn"])
    except FileNotFoundError as error:
        raise InvalidWeights(f"there is no checkpoint {path}") from error
    except Exception as error:  # unpickling damaged bytes raises anything
        raise InvalidWeights(f"{path} is not a checkpoint of smn train: {str(error).splitlines()[0]}") from error
    return checkpoint


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's own, written beside the file and renamed over it; a full disk or a kill leaves the earlier one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as temporary:
                super().save_checkpoint(checkpoint, temporary, storage_options)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
