"""The verbs that need a mask file and a backbone, and no more: inspect, embed, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from smn_core.errors import InvalidArgument
from smn_core.options import as_trained, model_options
from smn_core.spec import BackboneSpec

app = typer.Typer()

MaskFile = Annotated[Path, typer.Argument(metavar="FILE", help="A mask file (smn-mask/1).")]


@app.command()
def inspect(
    file: MaskFile,
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="A second mask: say how it differs from the first.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the density of every tensor (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Show what a mask file is: backbone, density by tensor and stage, bytes. Needs no weights."""
    from smn_core import show
    from smn_core.maskfile import read_mask
    from smn_core.plots import density_plot
    from smn_core.report import describe, difference

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
def embed(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="An image folder, or an .npz of uint8 arrays x_train, x_test.")
    ],
    out: Annotated[Path, typer.Option(metavar="X.npy", help="float32 [N,D]; a folder's paths go to X.txt beside it.")],
    spec: BackboneSpec,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mask to wear. Default: the untouched backbone.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="train, test: of an .npz, or a subfolder.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode.")] = 2,
) -> None:
    """Embed a folder or an .npz of images through a mask, without a server."""
    from smn_core.imageset import open_images
    from smn_core.offline import embed_to_file
    from smn_core.show import images_progress, note

    if out.suffix != ".npy":
        raise InvalidArgument(f"--out {out}: embeddings are written as .npy")
    images = open_images(data, split)
    engine, digest = _engine(spec, mask)
    with images_progress(len(images.names)) as progress:
        embed_to_file(images, engine, digest, out, batch_size=batch_size, workers=workers, progress=progress)
    note(f"{len(images.names)} embeddings of {engine.backbone.n_features} features in {out}")


@app.command()
@model_options
def export(
    file: MaskFile,
    out: Annotated[Path, typer.Option(metavar="W.safetensors", help="The weights to write.")],
    spec: BackboneSpec,
    head: Annotated[bool, typer.Option("--head", help="The mask's classifier too, under timm's name for it.")] = False,
) -> None:
    """Write theta' and state as ordinary timm weights, so that anyone can check, or leave."""
    from smn_core.export import export as write
    from smn_core.show import note

    # theta' is written as it is in the file: float32, whatever a forward would run in.
    backbone, task = _backbone_and_mask(replace(spec, device="cpu", dtype="float32"), file)
    write(backbone, task, out, with_head=head)
    args = {"num_classes": len(task.head.classes) if head else 0, **backbone.args}
    if hasattr(backbone.model, "set_input_size"):  # its position embeddings are of this size
        args["img_size"] = backbone.preprocess["input_size"][-1]
    called = ", ".join(f"{key}={value!r}" for key, value in args.items())
    note(f"{out}: load it with timm.create_model({backbone.architecture!r}, {called}) and strict=True")


def _engine(spec: BackboneSpec, mask: Path | None) -> tuple[Any, str | None]:
    """An engine with the mask prepared, and the mask's digest."""
    from smn_core.engine import Engine
    from smn_core.show import note

    backbone, task = _backbone_and_mask(spec, mask)
    engine = Engine(backbone, slots=1)
    if task is not None:
        for warning in engine.prepare(task):
            note(f"warning: {warning}")
    return engine, task.digest if task else None


def _backbone_and_mask(spec: BackboneSpec, mask: Path | None) -> tuple[Any, Any]:
    """The backbone a user named, or else the one that the mask names; and the mask, read for it."""
    from smn_core.backbone import load_backbone
    from smn_core.maskfile import read_mask
    from smn_core.show import note

    task = read_mask(mask) if mask is not None else None
    backbone = load_backbone(as_trained(spec, task))
    if backbone.ignored:
        note(
            f"{spec.weights}: ignored {len(backbone.ignored)} keys that the backbone has no place for: "
            f"{', '.join(backbone.ignored[:4])}{' ...' if len(backbone.ignored) > 4 else ''}"
        )
    return backbone, task
