"""Write the golden curve anew, only when a change of the method is meant: `python -m tests.training.golden`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.training.builders import build_world, run
from tests.training.test_learner import CURVES, GOLDEN, losses


def main() -> None:
    curves, masks = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = build_world(folder)
        for key, (model, recipe) in CURVES.items():
            masks[key] = run(world, folder / f"{key}.smn", recipe, model).mask.packed
            curves[key] = [round(loss, 6) for loss in losses(folder / f"{key}.run")]
    (GOLDEN / "curve.json").write_text(json.dumps(curves) + "\n")
    np.savez_compressed(GOLDEN / "curve.npz", **masks)


if __name__ == "__main__":
    main()
