"""The images that a run kept back for its verdict, noted in `FILE.run/unseen.json`: others judge by them too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from smn_core.files import write_bytes
from smn_core.imageset import ImageSet
from smn_core.verbs.recorded import run_folder

FILE_NAME = "unseen.json"


def write_unseen(folder: Path, names: Sequence[str]) -> None:
    """Note the names of the images that were kept back."""
    write_bytes(folder / FILE_NAME, (json.dumps({"unseen": list(names)}, indent=1) + "\n").encode())


def find_unseen(file: Path, images: ImageSet) -> Int64[ndarray, "u"] | None:
    """The numbers of those of the images that the run which wrote a mask file kept back; None where nothing is noted.

    The note lies in the run's folder beside the file, or around it: a candidate lies in the folder itself. A note of
    images that are not all in this set is of another set, and says nothing.
    """
    for folder in (run_folder(file), file.parent):
        try:
            noted = json.loads((folder / FILE_NAME).read_text())["unseen"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        places = {name: number for number, name in enumerate(images.names)}
        if noted and all(name in places for name in noted):
            return np.array(sorted(places[name] for name in noted), np.int64)
    return None
