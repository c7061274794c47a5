"""The verbs that need a mask file and a backbone, and no more: inspect, repack, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import model_options

app = typer.Typer()

Parent = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The mask that FILE is coded against, where it is not beside it."),
]

MaskFile = Annotated[Path, typer.Argument(metavar="FILE", help="A mask file (smn-mask/1).")]
FileOrCascade = Annotated[Path, typer.Argument(metavar="FILE", help="A mask file, a cascade file, or its folder.")]


@app.command()
@model_options
def inspect(
    file: FileOrCascade,
    spec: BackboneSpec,
    parent: Parent = None,
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="A second mask: say how it differs from the first.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    codings: Annotated[
        bool,
        typer.Option(
            "--codings",
            help="Also say how many bytes the bits take in other codecs, and their entropy by stage. Takes seconds.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the density of every tensor (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Show what a mask file or a cascade is: backbone, density or parts, bytes.

    Needs no weights. Without them it shows of a mask of codec context all but its bits.
    """
    from smn_core.verbs import show
    from smn_core.verbs.plots import density_plot
    from smn_core.verbs.report import classes_of_mask, describe, describe_cascade, difference, is_cascade, open_mask

    if is_cascade(file):
        if other is not None or plot is not None or codings:
            raise InvalidArgument(f"{file} is a cascade: --plot, --codings and a second file are for its masks")
        parts = describe_cascade(file)
        if as_json:
            show.as_json(parts)
        else:
            show.cascade(parts)
        return
    opened = open_mask(file, spec, parent)
    found: dict[str, Any] = describe(file, opened)
    if codings:
        from smn_core.verbs.codings import codings as compare

        found["codings"] = compare(opened[1], classes_of_mask(file, opened[1], spec))
    if other is not None:
        found["difference"] = {"other": str(other), **difference(opened[1], open_mask(other, spec, parent)[1])}
    if plot is not None:
        density_plot(opened[1], plot, file.name)
    if as_json:
        show.as_json(found)
    else:
        show.mask(found)


@app.command()
@model_options
def repack(
    file: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="A mask file, or the folder of a cascade.")],
    out: Annotated[Path, typer.Option(metavar="FILE_OR_DIR", help="The file, or the folder, to write.")],
    spec: BackboneSpec,
    codec: Annotated[
        str, typer.Option(help="raw, zstd, or context: the smallest, which needs the weights to be read.")
    ] = "context",
    parent: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Code the bits against this mask. For the folder of a cascade: one of its own masks, the root.",
        ),
    ] = None,
    state: Annotated[
        str,
        typer.Option(
            help="float16 rounds the normalisation statistics: it makes another mask, whose vectors are a little off."
        ),
    ] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Write the same mask, or the masks of a cascade, in other bytes: not a bit changes, their digests do."""
    from dataclasses import asdict

    from smn_core.verbs import show, stderr
    from smn_core.verbs.repack import repack as write

    done = write(spec, file, out, codec, parent, state)
    if as_json:
        show.as_json({"file": str(out), "codec": codec, **asdict(done)})
    else:
        stderr.note(f"{out}: {done.after:,} bytes as {codec}, {done.before:,} before")
        if done.moved:
            stderr.note(
                "its statistics are rounded, so it is another mask in another space: embeddings of 8 drawn pictures "
                f"move by at most {done.moved:.1e} of their length"
            )


@app.command()
@model_options
def export(
    file: MaskFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="What to write: W.safetensors or W.onnx.")],
    spec: BackboneSpec,
    parent: Parent = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", help="safetensors, weights for timm; onnx, a graph for any runtime. Default: by FILE."
        ),
    ] = None,
    head: Annotated[
        bool,
        typer.Option("--head", help="Write the mask's classifier too: as timm's own, or as the graph's second output."),
    ] = False,
    no_map: Annotated[
        bool,
        typer.Option(
            "--no-map", help="Leave out the mask's map. Otherwise it is timm's classifier, or part of the graph."
        ),
    ] = False,
) -> None:
    """Write the masked model as ordinary timm weights or as an ONNX graph: check it elsewhere, or leave SMN."""
    from smn_core.verbs.export import FORMATS, n_classes_of
    from smn_core.verbs.export import export as write
    from smn_core.verbs.loading import backbone_and_mask
    from smn_core.verbs.stderr import note

    if spec.weights is not None and out.exists() and out.resolve() == Path(spec.weights).resolve():
        raise InvalidArgument(f"--out {out} is the backbone itself: give another name")
    if format is not None and format not in FORMATS:
        raise InvalidArgument(f"--format {format!r}: choose {' or '.join(FORMATS)}")
    as_onnx = format == "onnx" or (format is None and out.suffix == ".onnx")
    if as_onnx:
        from smn_core.verbs.onnxfile import require_writers

        require_writers()  # before the backbone is loaded
    # theta' is written as it is in the file: float32, whatever a forward would run in.
    backbone, task = backbone_and_mask(replace(spec, device="cpu", dtype="float32"), file, parent)
    assert task is not None
    if as_onnx:
        from smn_core.verbs.onnxfile import export_onnx

        error = export_onnx(backbone, task, out, with_head=head, with_map=not no_map)
        unseen = "not checked: onnxruntime is not installed (extra onnx)"
        note(f"{out}: {unseen if error is None else f'checked with ONNX Runtime, {error:.1e} from the engine'}")
        return
    write(backbone, task, out, with_head=head, with_map=not no_map)
    args = {"num_classes": n_classes_of(task, with_head=head, with_map=not no_map), **backbone.args}
    if hasattr(backbone.model, "set_input_size"):  # its position embeddings are of this size
        args["img_size"] = backbone.preprocess["input_size"][-1]
    called = ", ".join(f"{key}={value!r}" for key, value in args.items())
    note(f"{out}: load it with timm.create_model({backbone.architecture!r}, {called}) and strict=True")
