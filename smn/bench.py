"""The verbs `smn bench` and `smn bench paper`, for a clone of the repository. This module imports typer alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import DEFAULT_BACKBONE, as_trained, for_learning, learning_options

app = typer.Typer()


@contextmanager
def _naming_what_is_missing() -> Iterator[None]:
    """Turn what cannot be imported into the command that brings it.

    Raises:
        InvalidArgument: the benchmarks, or a package that they need, are not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "benchmarks":
            needs = f"benchmarks need {error.name}: uv pip install -e '.[service,training,bench]'"
            raise InvalidArgument(needs) from error
        raise InvalidArgument("the benchmarks are not installed: `make setup` in a clone of the repository") from error


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer turns, smaller sizes: minutes, not hours.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME,...", help="Only these benchmarks; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON lines.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Measure nothing: write docs/performance.md.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Measure nothing: list names and questions.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder whose NAME.jsonl get the rows. Default: benchmarks/results."),
    ] = None,
) -> None:
    """Measure what SMN costs, beside what one would use instead; keep the rows. For a clone of the repository."""
    if context.invoked_subcommand is not None:
        return
    with _naming_what_is_missing():
        from benchmarks.command import list_benches, measure, write_report
    if list_only:
        list_benches(as_json=as_json)
    elif report:
        write_report(out)
    elif not measure(only or [], quick=quick, as_json=as_json, out=out):
        raise typer.Exit(1)


@app.command()
@learning_options(DEFAULT_BACKBONE)
def paper(
    spec: BackboneSpec,
    name: Annotated[str, typer.Option("--set", metavar="NAME", help="A set of torchvision's, as sun397 or dtd.")] = "",
    data: Annotated[
        str, typer.Option(metavar="DATA", help="Instead: class folders in train/ and test/, .npz, or torchvision:NAME.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Runs, scores, paper.md, paper.json. Default: paper-NAME, here.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="Recipe of the mask. Default: the paper's for a ResNet, else small-vit.")
    ] = "",
    supervised: Annotated[str, typer.Option(metavar="NAME", help="Recipe of the supervised mask.")] = "",
    finetune: Annotated[str, typer.Option(metavar="NAME", help="Recipe of full fine-tuning.")] = "",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART.NAME=VALUE",
            help="Change one setting of root, supervised, finetune, few or experts; may be repeated.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="AMOUNT", help="Few labels: a fraction, or a number per class; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many times the few labels are drawn.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the runs, the random flips and the clusters.")] = 0,
    experts: Annotated[int, typer.Option(min=1, help="How many experts a cascade has.")] = 5,
    fusion: Annotated[
        str,
        typer.Option(
            metavar="KIND[:COMPONENTS[:PRECISION[:RANK]]]", help="How the cascades are fused, as for smn cascade."
        ),
    ] = "pca",
    foreign: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A mask learned on other images, as one more control.")
    ] = None,
    skip: Annotated[str, typer.Option(metavar="PART,...", help="Leave out supervised, finetune, few or experts.")] = "",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode and augment.")] = 1,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="torch's threads; 0 takes torch's default.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass where nothing is learned.")] = 32,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what will be done, and about how long it takes.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop what an earlier start made.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Fill the paper's table for one set: its three label-efficient settings, with controls and standard errors.

    Learns a mask, a supervised mask, fine-tuned weights, the same two on few labels, and two cascades, and scores them
    on the test split. The same command goes on after a stop; what cannot work is named, and costs nothing else.
    """
    if bool(name) == bool(data):
        raise InvalidArgument("give --set NAME, or --data with a folder, an .npz or torchvision:NAME")
    with _naming_what_is_missing():
        from benchmarks.paper.command import name_set, run
        from benchmarks.paper.wanted import Wanted, choose_recipes, parse_settings, parse_skip
    from training.cascade.fusion import parse_fusion
    from training.labels import parse_amount
    from training.threads import limit_threads

    limit_threads(threads)
    spec = as_trained(for_learning(spec), None)
    data = data or f"torchvision:{name}"
    wanted = Wanted(
        spec, data, out or Path(f"paper-{name_set(data)}"),
        choose_recipes(spec.name or DEFAULT_BACKBONE, recipe, supervised, finetune), parse_settings(setting or ()),
        tuple(map(parse_amount, labels or ())), seeds=seeds, seed=seed, experts=experts,
        fusion=parse_fusion(fusion, seed), foreign=foreign,
        skip=parse_skip(skip), workers=workers, batch_size=batch_size, command=("smn", *sys.argv[1:]),
    )  # fmt: skip
    try:
        done = run(wanted, dry_run=dry_run, overwrite=overwrite, as_json=as_json)
    except KeyboardInterrupt as stopped:
        typer.echo("stopped; the same command goes on from what is finished", err=True)
        raise typer.Exit(130) from stopped
    if not done:
        raise typer.Exit(1)
