"""The verbs that need a mask file and a backbone, and no more: inspect, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import model_options

app = typer.Typer()

MaskFile = Annotated[Path, typer.Argument(metavar="FILE", help="A mask file (smn-mask/1).")]
FileOrCascade = Annotated[Path, typer.Argument(metavar="FILE", help="A mask file, a cascade file, or its folder.")]


@app.command()
def inspect(
    file: FileOrCascade,
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="A second mask: say how it differs from the first.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the density of every tensor (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Show what a mask file or a cascade is: backbone, density or parts, bytes. Needs no weights."""
    from smn_core.maskfile import read_mask
    from smn_core.verbs import show
    from smn_core.verbs.plots import density_plot
    from smn_core.verbs.report import describe, describe_cascade, difference, is_cascade

    if is_cascade(file):
        if other is not None or plot is not None:
            raise InvalidArgument(f"{file} is a cascade: --plot and a second file are for its masks")
        parts = describe_cascade(file)
        if as_json:
            show.as_json(parts)
        else:
            show.cascade(parts)
        return
    found: dict[str, Any] = describe(file)
    if other is not None:
        found["difference"] = {"other": str(other), **difference(read_mask(file), read_mask(other))}
    if plot is not None:
        density_plot(read_mask(file), plot, file.name)
    if as_json:
        show.as_json(found)
    else:
        show.mask(found)


@app.command()
@model_options
def export(
    file: MaskFile,
    out: Annotated[Path, typer.Option(metavar="W.safetensors", help="The weights to write.")],
    spec: BackboneSpec,
    head: Annotated[bool, typer.Option("--head", help="The mask's classifier too, under timm's name for it.")] = False,
    no_map: Annotated[
        bool, typer.Option("--no-map", help="Leave out the mask's map, else written as a classifier of D classes.")
    ] = False,
) -> None:
    """Write theta' and state as ordinary timm weights, so that anyone can check, or leave."""
    from smn_core.verbs.export import export as write
    from smn_core.verbs.export import n_classes_of
    from smn_core.verbs.loading import backbone_and_mask
    from smn_core.verbs.show import note

    if spec.weights is not None and out.exists() and out.resolve() == Path(spec.weights).resolve():
        raise InvalidArgument(f"--out {out} is the backbone itself: give another name")
    # theta' is written as it is in the file: float32, whatever a forward would run in.
    backbone, task = backbone_and_mask(replace(spec, device="cpu", dtype="float32"), file)
    assert task is not None
    write(backbone, task, out, with_head=head, with_map=not no_map)
    args = {"num_classes": n_classes_of(task, with_head=head, with_map=not no_map), **backbone.args}
    if hasattr(backbone.model, "set_input_size"):  # its position embeddings are of this size
        args["img_size"] = backbone.preprocess["input_size"][-1]
    called = ", ".join(f"{key}={value!r}" for key, value in args.items())
    note(f"{out}: load it with timm.create_model({backbone.architecture!r}, {called}) and strict=True")
