"""What a run notes in `FILE.run/backbone.json`: the weights that it learned on, for all verbs that take FILE.smn."""

from __future__ import annotations

import json
import os
from pathlib import Path

from smn_core.errors import InvalidArgument
from smn_core.files import require_writable, write_bytes
from smn_core.spec import BackboneSpec

FILE_NAME = "backbone.json"


def run_folder(file: Path) -> Path:
    """The folder of the run that wrote a file: `photos.run` beside `photos.smn`."""
    return file.with_name(f"{file.stem}.run")


def require_places(out: Path) -> None:
    """Check, before any work, that a run can write its file and its folder.

    Raises:
        InvalidArgument: one of them cannot be written.
    """
    require_writable(out)
    folder = run_folder(out)
    if folder.is_dir():
        require_writable(folder / FILE_NAME)
    elif os.path.lexists(folder):
        raise InvalidArgument(f"--out {out}: {folder}, where its run is kept, is no folder: move it away")


def write_backbone(folder: Path, spec: BackboneSpec, fingerprint: str) -> None:
    """Note the backbone of a run in its folder; `weights` is null where they are timm's own."""
    weights = str(spec.weights.absolute()) if spec.weights is not None else None
    noted = {"backbone": spec.name, "model_arg": dict(spec.args), "weights": weights, "fingerprint": fingerprint}
    write_bytes(folder / FILE_NAME, (json.dumps(noted, indent=2) + "\n").encode())


def read_weights(file: Path, fingerprint: str) -> Path | None:
    """The weights that the run beside a mask file learned on; None where there is no note, or they are timm's own.

    A note of another fingerprint is of another run, which has left it there, and says nothing of this mask.

    Raises:
        InvalidArgument: the note is damaged.
    """
    path = run_folder(file) / FILE_NAME
    if not path.exists():
        return None
    try:
        noted = json.loads(path.read_text())
        weights = noted["weights"] if noted["fingerprint"] == fingerprint else None
        return Path(weights) if weights is not None else None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"{path} is damaged: remove it, and name the weights with --weights FILE") from error


def missing_weights(file: Path, noted: Path) -> str:
    """What is wrong where the weights that a run noted are gone, and the fix."""
    return f"{run_folder(file)} says that {file} was learned on {noted}, which is not there: say --weights FILE"
