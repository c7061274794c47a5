"""The verb `smn probe`. This module imports typer alone; what the verb needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import model_options

app = typer.Typer()


@app.command()
@model_options
def probe(
    data: Annotated[str, typer.Option(metavar="LABELLED", help="Folder with a folder for each class, or .npz.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE.smn", help="The mask to write, with its classifier; for a cascade its folder.")
    ],
    spec: BackboneSpec,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The mask to classify through. Default: the frozen backbone.")
    ] = None,
    cascade: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A cascade instead: each of its modes gets a classifier.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the choice of images that are held out.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 32,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="torch's threads; 0 takes torch's default.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
) -> None:
    """Fit a linear classifier on labelled images and write it into a mask or a cascade, for `POST /classify`.

    Its strength is chosen by cross-validation. Accuracy and calibration are measured on a fifth of the images, which
    neither saw; then it is fitted on all of them. A cascade's classifiers act on its fused embeddings.
    """
    from smn_core.files import require_writable
    from smn_core.maskfile import require_mask_name
    from smn_core.verbs import show, stderr
    from training.data import open_labelled, others_among
    from training.probe.fused import probe_cascade
    from training.probe.probe import probe_mask
    from training.progress import count
    from training.threads import limit_threads

    if mask is not None and cascade is not None:
        raise InvalidArgument("--mask and --cascade: give one of them")
    if cascade is None:
        require_mask_name(out)
        require_writable(out)
    elif out.suffix in (".smn", ".safetensors") or out.is_file():
        raise InvalidArgument(f"--out {out}: a cascade is written to a folder, with its masks")
    limit_threads(threads)
    images = open_labelled(data)
    others = others_among(images)
    stderr.count_others(others)
    if cascade is not None:
        fused = probe_cascade(
            spec, images, cascade, out, data, batch_size=batch_size, seed=seed, bar=count, say=stderr.note
        )
        digest, unreadable, fitted = fused.cascade.digest, fused.unreadable, dict(fused.fitted)
        told: dict[str, Any] = {"modes": {mode: each.as_json() for mode, each in fitted.items()}}
    else:
        made = probe_mask(spec, images, mask, out, data, batch_size=batch_size, seed=seed, bar=count)
        digest, unreadable, fitted = made.mask.digest, made.unreadable, {"": made.fitted}
        told = made.fitted.as_json()
    stderr.name_unreadable(unreadable)
    if as_json:
        show.as_json({"out": str(out), "digest": digest, **told, "other_files": dict(others)})
    else:
        for mode, each in fitted.items():
            stderr.note(f"{out}{f', {mode}' if mode else ''}: {each.say()}")
        stderr.note(f"next: smn serve {out}" if cascade is None else f"next: smn push {out} --name NAME")
    stderr.end_by(unreadable)
