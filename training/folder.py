"""Write the folder of a finished run, `FILE.run/`: curve, pictures and README."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict

import torch

from smn_core.files import write_bytes
from smn_core.verbs.plots import density_plot
from smn_core.verbs.recorded import write_backbone
from smn_core.verbs.texts import visible
from training.checkpoints import README
from training.learner import Learner
from training.plots import draw_curve
from training.request import Request, Result
from training.watch import Curve


def write_folder(request: Request, learner: Learner, curve: Curve, result: Result) -> None:
    """Write the curve as CSV and picture, the densities, the backbone, and last the README with the command."""
    folder = request.folder
    write_backbone(folder, request.spec, learner.fingerprint)
    curve.write(folder / "curve.csv")
    draw_curve(curve.rows, folder / "curve.png", request.out.stem)
    if result.mask is not None:
        density_plot(result.mask, folder / "density.png", request.out.stem)
    write_bytes(folder / README, _format_readme(request, learner, result).encode(errors="backslashreplace"))


def _format_readme(request: Request, learner: Learner, result: Result) -> str:
    lines = [f"# {request.out.name}", "", "```sh", shlex.join(request.command), "```", ""]
    facts = {
        "objective": request.config.objective,
        "recipe": request.config.name,
        "backbone": f"{request.spec.name}, fingerprint {learner.fingerprint}",
        "data": f"{request.data}, split {request.split}",
        "seed": request.seed,
        "steps": learner.total_steps,
        "time": f"{result.seconds:.0f} s",
        "last loss": f"{result.final_loss:.4f}",
        "torch": torch.__version__,
    }
    if result.mask is not None:
        facts["density"] = f"{result.mask.density:.6f} ({result.mask.n_off} of {result.mask.layout.n_weights} OFF)"
        facts["digest"] = result.mask.digest
    facts["skipped images"] = len(result.skipped)
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += [f"  - {visible(name)}" for name in result.skipped]
    if result.warning:
        lines += ["", f"**Warning:** {result.warning}"]
    lines += ["", "Configuration:", "", "```json", json.dumps(asdict(request.config), indent=2), "```", ""]
    return "\n".join(lines)
