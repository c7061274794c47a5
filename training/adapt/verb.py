"""The verb `smn adapt`. This module imports typer alone; what the verb needs is imported when it runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from smn_core.spec import BackboneSpec
from smn_core.verbs.options import DEFAULT_BACKBONE, learning_options

app = typer.Typer()
FEWEST_MINUTES, MOST_MINUTES = 0.2, 7 * 24 * 60.0


@app.command()
@learning_options(DEFAULT_BACKBONE)
def adapt(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of images, .npz, or torchvision:NAME.")],
    spec: BackboneSpec,
    minutes: Annotated[
        float,
        typer.Option(min=FEWEST_MINUTES, max=MOST_MINUTES, help="Minutes for the whole command, with the verdict."),
    ] = 15.0,
    labelled: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder for each class, ten images in each: they decide a close verdict."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.smn",
            help="The mask to write; its run stays in FILE.run/. Default: the name of DATA, in this folder.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the images that are kept unseen, and of the runs.")
    ] = 0,
    codec: Annotated[str, typer.Option(help="Codec of the mask's bits: raw, zstd or context.")] = "zstd",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode and augment.")] = 1,
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="torch's threads; 0 measures which number is fastest.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop what an earlier start made.")] = False,
) -> None:
    """Learn a mask from a folder of photos without labels, test whether it helps, and say so in words.

    Tries several recipes within the time, fits a map, and judges the best on images kept unseen, against the untouched
    backbone. The last line is "verdict: adopt", "verdict: leave it" (FILE then changes nothing) or "verdict: cannot
    tell". Ctrl-C and SIGTERM keep what is finished; the same command goes on.
    """
    from smn_core.verbs.texts import visible
    from training.progress import OF_SIGNAL, number_of

    def tell(line: str) -> None:
        print(visible(line), flush=True)

    began = time.monotonic()
    try:
        tell(f"smn adapt: {minutes:g} minutes at most for {data}")

        import torch

        from training.adapt.adapt import Request, adapt, name_output

        if threads:
            torch.set_num_threads(threads)
        file = out if out is not None else name_output(data)
        request = Request(
            spec, data, file, minutes=minutes, labelled=labelled, seed=seed, workers=workers, threads=threads,
            overwrite=overwrite, command=["smn", *sys.argv[1:]], codec=codec,
        )  # fmt: skip
        ended = adapt(request, tell, began=began)
    except KeyboardInterrupt as stopped:
        tell("stopped: nothing was learned yet, and no mask was written")
        tell("the same command goes on from what is finished")
        tell("verdict: cannot tell")
        raise typer.Exit(OF_SIGNAL + number_of(stopped)) from stopped
    if ended.signal:
        raise typer.Exit(OF_SIGNAL + ended.signal)
