"""The verbs that need a mask file and a backbone, and no more: inspect, embed, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options

if TYPE_CHECKING:
    from smn_core.verbs.offline import Embed

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
def embed(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="An image folder, or an .npz of uint8 arrays x_train, x_test.")
    ],
    out: Annotated[Path, typer.Option(metavar="X.npy", help="float32 [N,D]; a folder's paths go to X.txt beside it.")],
    spec: BackboneSpec,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mask to wear. Default: the untouched backbone.")
    ] = None,
    cascade: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A cascade of `smn cascade`, instead of a mask.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="Of the cascade: unconditional or conditional. Default: its own.")
    ] = None,
    dimensions: Annotated[int | None, typer.Option(help="Keep the first components.")] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="train, test: of an .npz, or a subfolder.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing if an image cannot be read.")] = False,
) -> None:
    """Embed a folder or an .npz of images through a mask or a cascade, without a server.

    An image that cannot be read has no row. It is named and counted, and the exit code is then 1.
    """
    from smn_core.imageset import open_images
    from smn_core.verbs.offline import embed_through, embed_to_file, keep_first
    from smn_core.verbs.show import end_by, images_progress, name_unreadable, note

    if out.suffix != ".npy":
        raise InvalidArgument(f"--out {out}: embeddings are written as .npy")
    if mask is not None and cascade is not None:
        raise InvalidArgument("--mask and --cascade: give one of them")
    if mode is not None and cascade is None:
        raise InvalidArgument("--mode is for a --cascade")
    images = open_images(data, split)
    if cascade is not None:
        engine, run, width = _cascade_engine(spec, cascade, mode, dimensions)
    else:
        engine, digest = _engine(spec, mask)
        run, width = keep_first(embed_through(engine, digest), dimensions, engine.backbone.n_features)
    with images_progress(len(images.names)) as on_batch:
        skipped = embed_to_file(
            images, engine, run, width, out, batch_size=batch_size, workers=workers, strict=strict, on_batch=on_batch
        )
    name_unreadable(skipped)
    note(f"{len(images.names) - len(skipped)} embeddings of {width} features in {out}")
    end_by(skipped)


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
    from smn_core.verbs.show import note

    if spec.weights is not None and out.exists() and out.resolve() == Path(spec.weights).resolve():
        raise InvalidArgument(f"--out {out} is the backbone itself: give another name")
    # theta' is written as it is in the file: float32, whatever a forward would run in.
    backbone, task = _backbone_and_mask(replace(spec, device="cpu", dtype="float32"), file)
    write(backbone, task, out, with_head=head, with_map=not no_map)
    args = {"num_classes": n_classes_of(task, with_head=head, with_map=not no_map), **backbone.args}
    if hasattr(backbone.model, "set_input_size"):  # its position embeddings are of this size
        args["img_size"] = backbone.preprocess["input_size"][-1]
    called = ", ".join(f"{key}={value!r}" for key, value in args.items())
    note(f"{out}: load it with timm.create_model({backbone.architecture!r}, {called}) and strict=True")


def _engine(spec: BackboneSpec, mask: Path | None) -> tuple[Any, str | None]:
    """An engine with the mask prepared, and the mask's digest."""
    from smn_core.engine import Engine
    from smn_core.verbs.show import note

    backbone, task = _backbone_and_mask(spec, mask)
    engine = Engine(backbone, slots=1)
    if task is not None:
        for warning in engine.prepare(task):
            note(f"warning: {warning}")
    return engine, task.digest if task else None


def _cascade_engine(
    spec: BackboneSpec, folder: Path, mode: str | None, dimensions: int | None
) -> tuple[Any, Embed, int]:
    """An engine with the masks of a cascade prepared, the function that embeds through it, and how wide that is."""
    import torch

    from smn_core.backbone import load_backbone
    from smn_core.cascade.cascade import embed
    from smn_core.cascade.file import check_fits, open_folder
    from smn_core.engine import Engine
    from smn_core.verbs.offline import keep_first
    from smn_core.verbs.show import note

    found = open_folder(folder)
    cascade, masks = found.cascade, found.masks()
    chosen = cascade.choose_mode(mode)
    backbone = load_backbone(as_trained(spec, masks[0], found.files[0]))
    check_fits(cascade, backbone)
    engine = Engine(backbone, slots=len(masks))
    warnings = {warning: None for mask in masks for warning in engine.prepare(mask)}
    for warning in warnings:
        note(f"warning: {warning}")
    width = cascade.choose_dimensions(dimensions, chosen, backbone.n_features)
    run, _ = keep_first(lambda x: torch.from_numpy(embed(engine, cascade, chosen, x).embeddings), width, width)
    return engine, run, width


def _backbone_and_mask(spec: BackboneSpec, mask: Path | None) -> tuple[Any, Any]:
    """The backbone a user named, or else the one that the mask names; and the mask, read for it."""
    from smn_core.backbone import load_backbone
    from smn_core.maskfile import read_mask
    from smn_core.verbs.show import note

    task = read_mask(mask) if mask is not None else None
    backbone = load_backbone(as_trained(spec, task, mask))
    if backbone.ignored:
        note(
            f"{spec.weights}: ignored {len(backbone.ignored)} keys that the backbone has no place for: "
            f"{', '.join(backbone.ignored[:4])}{' ...' if len(backbone.ignored) > 4 else ''}"
        )
    return backbone, task
