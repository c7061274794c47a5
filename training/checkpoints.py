"""Writing a checkpoint so that the one before it stays until the new one is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_fabric.plugins import TorchCheckpointIO

from smn_core.files import replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's own, written beside the file and renamed over it; a full disk or a kill leaves the earlier one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as temporary:
                super().save_checkpoint(checkpoint, temporary, storage_options)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
