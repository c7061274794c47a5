"""The verb `smn translate`. This module imports typer alone; what the verb needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import model_options

app = typer.Typer()


@app.command()
@model_options
def translate(
    before: Annotated[str, typer.Option("--from", metavar="FILE", help="The mask of the old vectors, or root.")],
    after: Annotated[str, typer.Option("--to", metavar="FILE", help="The mask of the new ones, or root.")],
    data: Annotated[str, typer.Option(metavar="SAMPLE", help="Images like those in the index: folder or .npz.")],
    out: Annotated[Path, typer.Option(metavar="MAP.npz", help="matrix, mean_from, mean_to, from, to.")],
    spec: BackboneSpec,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward.")] = 32,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="torch's threads; 0: torch's default.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as one JSON object.")] = False,
) -> None:
    """Fit a linear map from one mask's vectors to another's, so that an index need not be embedded again.

    z' = (z - mean_from) @ matrix.T + mean_to. It says what that costs: how many of the ten true neighbours in the new
    space an index of translated vectors finds, on images that the map was not fitted on, beside the old vectors.
    """
    import torch

    from smn_core.verbs import show
    from training.progress import count
    from training.translate.translate import run

    if out.suffix != ".npz":
        raise InvalidArgument(f"--out {out}: a map is written to a .npz file")
    if threads:
        torch.set_num_threads(threads)
    made = run(spec, before, after, data, out, batch_size=batch_size, bar=count)
    show.name_unreadable(made.unreadable)
    if as_json:
        show.as_json({"out": str(out), **made.as_json()})
    else:
        found = made.found
        show.note(
            f"{out}: of ten neighbours in the new space translated vectors find {10 * found.recall:.1f}, the old ones "
            f"{10 * found.recall_untouched:.1f} ({found.n_held_out} held-out images; fitted on {found.n_fitted})"
        )
    show.end_by(made.unreadable)
