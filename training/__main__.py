"""The verbs of learning: train, recipes, train-many, cascade. Rooms with verbs of their own bring them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import DEFAULT_BACKBONE, as_trained, for_learning, learning_options, model_options
from training.adapt.verb import app as adapt_verb
from training.evaluation.verb import app as evaluation_verbs
from training.probe.verb import app as probe_verb

if TYPE_CHECKING:
    from training.request import Request

app = typer.Typer()
app.add_typer(adapt_verb)
app.add_typer(evaluation_verbs)
app.add_typer(probe_verb)
MAX_SEED, MAX_EXPERTS, MAX_THREADS = 2**32 - 1, 64, 1024  # numpy's seeds have 32 bits
# click's UsageError: typer's versions keep it in different places.
USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")

Threads = Annotated[int, typer.Option(min=0, max=MAX_THREADS, help="torch's threads; 0 takes torch's default.")]
ThreadsOfEach = Annotated[
    int, typer.Option(min=0, max=MAX_THREADS, help="torch's threads of each run; 0 shares the cores out.")
]
On = Annotated[
    str, typer.Option("--on", metavar="ray[=ADDRESS]", help="Runs are tasks of a Ray cluster. Default: processes here.")
]
Cpus = Annotated[float, typer.Option(min=0, help="CPUs of a Ray task.")]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of a Ray task.")]
Retries = Annotated[
    int, typer.Option(min=0, help="How often a run whose process or worker dies goes on from its checkpoint.")
]


@app.command()
@learning_options(f"that of --start, else {DEFAULT_BACKBONE}")
def train(
    data: Annotated[str, typer.Option(metavar="DATA", help="Image folder, .npz, or torchvision:NAME.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE.smn", help="The mask to write; its run stays in FILE.run/ beside it.")
    ],
    spec: BackboneSpec,
    objective: Annotated[
        str, typer.Option(help="swav, supervised, finetune or swav-finetune. Default: the recipe's.")
    ] = "",
    recipe: Annotated[str, typer.Option(metavar="NAME", help="One of `smn recipes`.")] = "small-vit",
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. Default: the recipe's steps.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="AMOUNT", help="For objectives with labels: a fraction (0.1), or a number per class (1)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of data order, augmentation and head.")] = 0,
    split: Annotated[str, typer.Option(help="Split to learn from.")] = "train",
    stages: Annotated[str, typer.Option(metavar="REGEX", help="Mask only tensors whose name it matches.")] = "",
    share: Annotated[
        float | None, typer.Option(help="Let only this random share of the weights be switched off.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Keep this share of every tensor ON: the weights with the highest scores.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change one setting of the recipe; may be repeated."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.smn",
            help="Begin where the run of this mask ended, with a new schedule: for other images or other crops.",
        ),
    ] = None,
    codec: Annotated[str, typer.Option(help="Codec of the mask's bits: raw, zstd or context.")] = "zstd",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode and augment.")] = 1,
    threads: Threads = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in FILE.run/ where it was stopped.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop an earlier run of this name.")] = False,
) -> None:
    """Learn a mask from images: SwAV without labels, or cross-entropy with them.

    Images that cannot be read are left out and named, and the exit code is then 1.
    """
    from smn_core.verbs.stderr import count_others, note
    from training.progress import first_word, say_how_to_go_on

    if resume and overwrite:
        raise InvalidArgument("--resume and --overwrite exclude each other")
    command = ["smn", *sys.argv[1:]]
    by_variable = spec.by_variable.get("name", DEFAULT_BACKBONE)
    backbone = spec.name or (f"of {start}" if start is not None else by_variable)
    try:
        with first_word(f"smn train: reading {data} and the backbone {backbone}"):
            import torch

            from training.command import tell_result
            from training.data import others_among
            from training.request import make_request
            from training.run import learn, prepare

            request = make_request(
                spec, data, out, objective=objective, recipe=recipe, epochs=epochs, labels=labels, seed=seed,
                split=split, stages=stages, share=share, density=density, setting=setting, workers=workers,
                resume=resume, overwrite=overwrite, start=start, command=command, codec=codec,
            )  # fmt: skip
            if threads:
                torch.set_num_threads(threads)
            prepared = prepare(request)
        if prepared.rank == 0:
            count_others(others_among(prepared.images))
        for remark in prepared.remarks:
            note(remark)
        result = learn(prepared)
    except KeyboardInterrupt as stopped:
        raise typer.Exit(say_how_to_go_on(command, stopped)) from stopped
    tell_result(prepared.request, result)


@app.command()
def recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print them with their commands as one JSON list.")] = False,
) -> None:
    """List the recipes of `smn train`, with when to take which."""
    from training.command import tell_recipes

    tell_recipes(as_json=as_json)


@app.command("train-many")
def train_many(
    manifest: Annotated[
        Path,
        typer.Argument(metavar="MANIFEST", help="A TOML file: a table `defaults`, and a table `mask` for each mask."),
    ],
    processes: Annotated[int, typer.Option(min=0, help="Runs at once; 0: one a core or GPU.")] = 0,
    threads: ThreadsOfEach = 0,
    on: On = "",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    retries: Retries = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on; what is finished is kept.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop earlier runs of these names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what became of each as one JSON object.")] = False,
) -> None:
    """Learn many masks, side by side, here or on Ray; a broken one costs no other. A finished mask is pushed at once.

    An entry says what `smn train` is told, by the same names: data, out, recipe, set, seed, backbone ...; and push.
    """
    from smn_core.verbs import show, stderr
    from training.progress import say_how_to_go_on
    from training.several.fan_out import choose_fan_out
    from training.several.jobs import RunFailed
    from training.several.manifest import read_manifest
    from training.several.many import FAILED, run_many

    if resume and overwrite:
        raise InvalidArgument("--resume and --overwrite exclude each other")
    entries = read_manifest(manifest, _parse_train)
    device = next((entry.job.request.spec.device for entry in entries if entry.job), "auto")
    fan_out = choose_fan_out(on, processes, threads, cpus, gpus, retries, len(entries), device)
    try:
        made = run_many(entries, fan_out, show.progress, stderr.note, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt as stopped:
        raise typer.Exit(say_how_to_go_on(["smn", *sys.argv[1:]], stopped)) from stopped
    rows = [outcome.as_json() for outcome in made]
    if as_json:
        show.as_json({"masks": rows})
    else:
        show.table(("mask", "state", "digest"), [(r["out"], r["state"], r.get("digest", r["trouble"])) for r in rows])
    if failed := [outcome for outcome in made if outcome.state == FAILED]:
        for outcome in failed:
            stderr.note(f"{outcome.entry.name}: {outcome.trouble}")
        raise RunFailed(f"{len(failed)} of {len(made)} masks failed, as listed; mend them and say --resume")


def _parse_train(words: list[str]) -> tuple[Request, int]:
    """The request, and torch's threads, of a command line of `smn train`."""
    from training.request import make_request

    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    try:
        context = command.make_context("train", words)
    except USAGE_ERROR as error:
        raise InvalidArgument(error.format_message()) from error
    given = dict(context.params)
    threads = given.pop("threads")
    return model_options(make_request)(context=context, **given), threads


@app.command()
@learning_options("the root's own")
def cascade(
    data: Annotated[str, typer.Option(metavar="DATA", help="Image folder, .npz, or torchvision:NAME.")],
    root: Annotated[Path, typer.Option(metavar="FILE.smn", help="The root mask, its FILE.run/ beside it.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder to write: root.smn, expert-1.smn ..., cascade.safetensors.")
    ],
    spec: BackboneSpec,
    experts: Annotated[
        int, typer.Option(min=0, max=MAX_EXPERTS, help="How many experts; 0 only whitens the root.")
    ] = 5,
    clusters: Annotated[
        str, typer.Option(help="mixture (the default): clusters of root embeddings; random: the control.")
    ] = "",
    fusion: Annotated[
        str,
        typer.Option(
            metavar="KIND[:COMPONENTS[:PRECISION[:RANK]]]",
            help="How embeddings are fused: concat, pca, random or low-rank.",
        ),
    ] = "pca",
    modes: Annotated[
        str | None, typer.Option(help="Modes to fit. Default: both, without experts the unconditional one.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="The cascade's default mode. Default: the first fitted.")] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Passes of every expert over its own images. Default: as many steps as the root took."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change one setting of the root's recipe; may be repeated."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEED - MAX_EXPERTS, help="Seed of the clusters; expert j has this seed plus j."),
    ] = 0,
    split: Annotated[str, typer.Option(help="Split of the data to learn from. Default: train.")] = "",
    train_split: Annotated[str, typer.Option(help="The earlier name of --split.")] = "",
    processes: Annotated[int, typer.Option(min=0, help="Experts at once; 0: one a core or GPU.")] = 0,
    threads: ThreadsOfEach = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes of each expert that decode and augment.")] = 0,
    on: On = "",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    retries: Retries = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass where nothing is learned.")] = 32,
    resume: Annotated[bool, typer.Option("--resume", help="Go on; what is finished is kept.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop an earlier cascade of this name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as one JSON object.")] = False,
) -> None:
    """Make a cascade of a root mask: clusters, an expert for each, a fusion. Needs no labels."""
    from dataclasses import replace

    from smn_core.cascade.fusion import MODES, UNCONDITIONAL
    from smn_core.maskfile import read_mask
    from smn_core.verbs import show, stderr
    from training.cascade.build import CascadeRequest, build
    from training.cascade.fusion import parse_fusion
    from training.config import override
    from training.progress import say_how_to_go_on
    from training.several.fan_out import choose_fan_out
    from training.several.processes import choose_processes, work_here
    from training.starts import read_config
    from training.threads import limit_threads

    clusters, split = _read_clusters_and_split(clusters, split, train_split)
    config = None
    if experts:
        # The root's head is trained already: no step of an expert is for the head alone.
        config = override(replace(read_config(root), head_steps=0), setting or [])
        config = replace(config, epochs=epochs, steps=None) if epochs is not None else config
    fitted = modes.split(",") if modes else list(MODES) if experts else [UNCONDITIONAL]
    limit_threads(threads)
    processes = processes or choose_processes(experts, spec.device)
    fan_out = work_here  # one at a time needs no process of its own
    if on or min(processes, experts) > 1:
        fan_out = choose_fan_out(on, processes, threads, cpus, gpus, retries, experts, spec.device)
    request = CascadeRequest(
        as_trained(for_learning(spec), read_mask(root), root), data, root, config, out, experts=experts,
        clusters=clusters,
        fusion=parse_fusion(fusion, seed), modes=fitted, mode=mode or fitted[0], split=split, seed=seed,
        resume=resume, overwrite=overwrite, workers=workers, fan_out=fan_out, batch_size=batch_size,
        command=["smn", *sys.argv[1:]],
    )  # fmt: skip
    try:
        made = build(request, show.progress, stderr.note)
    except KeyboardInterrupt as stopped:
        raise typer.Exit(say_how_to_go_on(request.command, stopped)) from stopped
    if as_json:
        show.as_json({"digest": made.cascade.digest, "sizes": made.sizes, "purity": made.purity, "bytes": made.bytes})
    else:
        pure = f", purity {made.purity['all']:.3f}" if made.purity else ""
        stderr.note(f"{out}: clusters {made.sizes}{pure}, {sum(made.bytes.values()):,} bytes, {made.cascade.digest}")
    stderr.end_by(made.unreadable)


def _read_clusters_and_split(clusters: str, split: str, train_split: str) -> tuple[str, str]:
    """How images are clustered, and the part of the data, from today's options of `smn cascade` and earlier ones.

    `--split` was the name of `--clusters`, and the part of the data was `--train-split`.
    """
    from smn_core.verbs.stderr import note
    from training.cascade.clusters import KINDS

    if split in KINDS and not clusters:
        note(f"--split {split} is now --clusters {split}")
        clusters, split = split, ""
    if split and train_split and split != train_split:
        raise InvalidArgument(f"--split {split} and --train-split {train_split} mean the same: give one of them")
    return clusters or KINDS[0], split or train_split or "train"
