"""The verb `smn probe`. This module imports typer alone; what the verb needs is imported when it runs."""

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
def probe(
    data: Annotated[str, typer.Option(metavar="LABELLED", help="Folder with a folder for each class, or .npz.")],
    out: Annotated[Path, typer.Option(metavar="FILE.smn", help="The mask with its classifier.")],
    spec: BackboneSpec,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The mask to classify through. Default: the frozen backbone.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the rows that are held out.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward.")] = 32,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="torch's threads; 0: torch's default.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
) -> None:
    """Fit a linear classifier on labelled images and write it into a mask, for `POST /classify`.

    Its strength is chosen by cross-validation. Accuracy and calibration are measured on a fifth of the images, which
    neither saw; then it is fitted on all of them.
    """
    from smn_core.verbs import show
    from training.probe.probe import probe as run
    from training.threads import limit_threads

    if out.suffix != ".smn":
        raise InvalidArgument(f"--out {out}: a mask is written to a .smn file")
    limit_threads(threads)
    with show.images_progress(None) as on_batch:
        made = run(spec, data, mask, out, batch_size=batch_size, seed=seed, on_batch=on_batch)
    show.name_unreadable(made.unreadable)
    scores = made.fitted
    if as_json:
        show.as_json({"out": str(out), "digest": made.mask.digest, **scores.as_json()})
    else:
        show.note(
            f"{out}: {len(scores.head.classes)} classes, accuracy {scores.accuracy:.3f} and calibration error "
            f"{scores.calibration_error:.3f} on {scores.n_held_out} held-out images, C {scores.strength:g}"
        )
        show.note(f"next: smn serve {out}")
    show.end_by(made.unreadable)
