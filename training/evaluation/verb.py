"""The verbs that judge masks: evaluate, verdict. This module imports typer alone until one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options

app = typer.Typer()
Threads = Annotated[int, typer.Option(min=0, max=1024, help="torch's threads; 0 takes torch's default.")]


@app.command()
@model_options
def evaluate(
    data: Annotated[str, typer.Option(metavar="DATA", help="Image folder, .npz, or torchvision:NAME.")],
    spec: BackboneSpec,
    mask: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A mask; may be repeated.")] = None,
    parent: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The mask that a --mask is coded against, where it is not beside it."),
    ] = None,
    cascade: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A cascade, with its controls; may be repeated.")
    ] = None,
    fusion: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[:COMPONENTS[:PRECISION[:RANK]]]",
            help="Another fusion of the cascades, as pca:64:int8, pca::int3 or low-rank::int8:32; may be repeated.",
        ),
    ] = None,
    probe: Annotated[
        str, typer.Option(help="knn, linear, or both with a comma; none shows the signs without labels alone.")
    ] = "knn,linear",
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="AMOUNT", help="Low-shot: a fraction (0.1), or a number per class (1); may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many times the few labels are drawn.")] = 5,
    train_split: Annotated[
        str, typer.Option(help="The split that kNN looks into and the probe learns from.")
    ] = "train",
    test_split: Annotated[str, typer.Option(help="The split that is scored.")] = "test",
    folds: Annotated[
        int,
        typer.Option(
            help="Score this many folds of the train split instead, to choose settings; the test split stays unopened."
        ),
    ] = 0,
    views: Annotated[
        bool,
        typer.Option(
            help="Show the agreement of two views of every train image: a telling sign, and most of the work."
        ),
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 32,
    threads: Threads = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw low-shot accuracy (the paper's figure 3).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Compare masks and cascades with the untouched backbone: signs without labels, kNN, linear probe, low-shot.

    Images that cannot be read are left out and named, and the exit code is then 1.
    """
    from smn_core.backbone import load_backbone
    from smn_core.cascade.file import open_folder
    from smn_core.engine import Engine
    from smn_core.maskfile import read_mask, with_bits
    from smn_core.verbs import show
    from smn_core.verbs.plots import require_plottable
    from smn_core.verbs.stderr import count_others, end_by, name_unreadable
    from training.cascade.fusion import parse_fusion
    from training.evaluation.evaluate import EvaluationSettings
    from training.evaluation.evaluate import evaluate as run
    from training.evaluation.tables import print_results
    from training.labels import parse_amount
    from training.threads import limit_threads

    settings = EvaluationSettings(
        data, tuple(p for p in probe.split(",") if p not in ("", "none")), tuple(map(parse_amount, labels or ())),
        seeds, train_split, test_split, folds, batch_size, views,
    )  # fmt: skip
    limit_threads(threads)
    if plot is not None:
        if not labels:
            raise InvalidArgument("--plot draws low-shot accuracy: say --labels too")
        require_plottable(plot)
    fusions = [parse_fusion(text) for text in fusion or []]
    if fusions and not cascade:
        raise InvalidArgument("--fusion is for a --cascade")
    masks = [(path.stem, read_mask(path, parent=parent)) for path in mask or []]
    folders = [(path.name, open_folder(path)) for path in cascade or []]
    file = mask[0] if mask else folders[0][1].files[0] if folders else None
    first = masks[0][1] if masks else read_mask(file) if file is not None else None
    backbone = load_backbone(as_trained(spec, first, file))
    with show.images_progress(None) as on_batch:
        masks = [(name, with_bits(task, backbone)) for name, task in masks]
        found = run(Engine(backbone, slots=1), masks, settings, on_batch, folders, fusions)
    if plot is not None:
        from training.plots import draw_low_shot

        draw_low_shot(found, plot)
    if as_json:
        show.as_json(found)
    else:
        print_results(found)
    for split, others in found["other_files"].items():
        count_others(others, f" of the {split} split")
    for split, reasons in found["unreadable"].items():
        name_unreadable(reasons, f" of the {split} split")
    end_by([reason for reasons in found["unreadable"].values() for reason in reasons])


@app.command()
@model_options
def verdict(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Masks to judge.")],
    data: Annotated[str, typer.Option(metavar="DATA", help="Image folder, .npz, or torchvision:NAME.")],
    spec: BackboneSpec,
    labelled: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder for each class, with about ten labelled images in each."),
    ] = None,
    foreign: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A mask learned on other images, as one more control.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.smn", help="Write the mask with its verdict in it; for one FILE alone.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 32,
    threads: Threads = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Say whether masks are worth having: adopt, leave it, or cannot tell. Needs no labels; every answer exits 0."""
    import torch

    from training.evaluation.command import run

    if threads:
        torch.set_num_threads(threads)
    run(spec, files, data, labelled=labelled, foreign=foreign, out=out, batch_size=batch_size, as_json=as_json)
