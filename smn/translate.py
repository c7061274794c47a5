"""The verb `smn translate`: from one mask's vectors to another's, by files here or by names on a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smn.embed import ROOT, refuse_model
from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import model_options

if TYPE_CHECKING:
    from service.client import Client
    from training.translate.translate import Pair

app = typer.Typer()


@app.command()
@model_options
def translate(
    before: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FILE",
            help="The mask that the old vectors went through, or root; with --server a name there.",
        ),
    ],
    after: Annotated[str, typer.Option("--to", metavar="FILE", help="The mask that new vectors go through, or root.")],
    data: Annotated[str, typer.Option(metavar="SAMPLE", help="Images like those in the index: folder or .npz.")],
    out: Annotated[
        Path, typer.Option(metavar="MAP.npz", help="The map to write: matrix, mean_from, mean_to, from, to.")
    ],
    spec: BackboneSpec,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Embed through this server: --from photos@3 --to photos@4.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", envvar="SMN_KEY", help="A key of the server; env:NAME reads it from the variable NAME."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass; without a server.")] = 32,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="torch's threads; 0: torch's default.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as one JSON object.")] = False,
) -> None:
    """Fit a linear map from one mask's vectors to another's, so that an index need not be embedded again.

    z' = (z - mean_from) @ matrix.T + mean_to. It says what that costs: how many of the ten true neighbours in the new
    space an index of translated vectors finds, on images that the map was not fitted on, beside the old vectors.
    """
    if out.suffix != ".npz":
        raise InvalidArgument(f"--out {out}: a map is written to a .npz file")
    if server is not None:
        refuse_model(spec)

    from smn_core.verbs import show, stderr
    from training.progress import count
    from training.threads import limit_threads
    from training.translate.translate import pair_of_files, run

    limit_threads(threads)
    if server is None:
        made = run(pair_of_files(spec, before, after, batch_size), data, out, bar=count)
    else:
        from service.client import Client
        from service.settings import secret

        with Client(server, secret(key)) as client:
            made = run(pair_on_server(client, before, after), data, out, bar=count)
    stderr.name_unreadable(made.unreadable)
    if as_json:
        show.as_json({"out": str(out), **made.as_json()})
    else:
        found = made.found
        stderr.note(
            f"{out}: of ten neighbours in the new space translated vectors find {10 * found.recall:.1f}, the old ones "
            f"{10 * found.recall_untouched:.1f} ({found.n_held_out} held-out images; fitted on {found.n_fitted})"
        )
    stderr.end_by(made.unreadable)


def pair_on_server(client: Client, before: str, after: str) -> Pair:
    """The spaces of two masks of a server, or of `root`, embedded there. A name that is pushed over ends it.

    Raises:
        ServerError, ServerAway: as the client.
    """
    import numpy as np

    from smn_core.imageset import FolderSet
    from training.translate.translate import Pair

    masks = [None if name == ROOT else name for name in (before, after)]
    spaces = [client.space(mask) for mask in masks]

    def look(images: Any, on_batch: Any) -> tuple[Any, Any, Sequence[str]]:
        source, rows, reasons = images.source, dict[int, list[Any]](), dict[int, str]()
        for mask, space in zip(masks, spaces, strict=True):
            each = (source.root / source.names[i] if isinstance(source, FolderSet) else source.image(i)
                    for i in images.indices)  # fmt: skip
            for row in client.embed_each(each, mask, space=space, strict=False):
                if row.vector is None:
                    reasons[row.number] = f"{images.names[row.number]}: {row.error}"
                else:
                    rows.setdefault(row.number, []).append(row.vector)
                on_batch(1)
        good = [pair for _, pair in sorted(rows.items()) if len(pair) == len(masks)]
        old, new = (np.array([pair[place] for pair in good], np.float32) for place in (0, 1))
        return old, new, list(reasons.values())

    return Pair(spaces[0], spaces[1], look)
