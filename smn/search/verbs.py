"""The verbs `smn index`, `smn search` and `smn dedupe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smn.embed import refuse_model
from smn_core.errors import InvalidArgument, InvalidData, InvalidImage
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import model_options

app = typer.Typer()
NEAR_COPY = 0.95

Made = Annotated[
    str,
    typer.Argument(
        metavar="X.lance", help="A collection of smn index; or X.parquet, X.faiss, qdrant://, postgresql://."
    ),
]
StoreKey = Annotated[
    str | None,
    typer.Option(
        "--store-key",
        envvar="SMN_STORE_KEY",
        help="A key of the Qdrant server; env:NAME reads it from the variable NAME.",
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="The mask: a file, or with --server a name there; root is the untouched backbone."
    ),
]
Cascade = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="A cascade instead of a mask: its folder, or with --server a name there."),
]
Mode = Annotated[
    str | None, typer.Option(help="The cascade's mode: unconditional or conditional. Default: the one that it names.")
]
Server = Annotated[str | None, typer.Option(metavar="URL", help="Embed through this server.")]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="SMN_KEY", help="A key of the server; env:NAME reads it from the variable NAME."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


@app.command()
@model_options
def index(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of photos.")],
    out: Annotated[
        str,
        typer.Option(
            metavar="X.lance",
            help="The collection, made or brought up to date; or X.parquet, X.faiss, qdrant://HOST:PORT/NAME,"
            " postgresql://HOST/DATABASE/NAME.",
        ),
    ],
    spec: BackboneSpec,
    mask: Mask = None,
    cascade: Cascade = None,
    mode: Mode = None,
    server: Server = None,
    key: Key = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass; without a server.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode images; without a server.")] = 2,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests under way at once; with a server.")] = 4,
    store_key: StoreKey = None,
    as_json: AsJson = False,
) -> None:
    """Keep a folder of photos as a collection that smn search looks into.

    Said again it embeds new and changed files only, and removes those that are gone. A stopped run goes on. An image
    that cannot be read is named and left out, and the exit code is then 1.
    """
    from contextlib import closing

    from smn.search.opening import alone, open_store
    from smn.search.places import place_of
    from smn.search.sync import sync
    from smn.search.through import ROOT, Chosen, open_through
    from smn_core.imageset import FolderSet, open_images
    from smn_core.verbs import show, stderr

    if not data.is_dir():
        raise InvalidData(f"{data} is no folder: index takes a folder of photos")
    chosen = Chosen(None if mask == ROOT else mask, cascade, mode, server)
    chosen.check()
    if server is not None:
        refuse_model(spec)
    place, opened_by = place_of(out), _secret(store_key)
    open_store(place, opened_by).close()  # before anything is loaded
    images = open_images(data)
    assert isinstance(images, FolderSet)  # of a folder
    stderr.count_others(images.others)
    making = open_through(spec, chosen, key=key, batch_size=batch_size, workers=workers, in_flight=in_flight)
    with (
        alone(place),
        making as through,
        closing(open_store(place, opened_by)) as store,
        show.images_progress(len(images.names)) as on_batch,
    ):
        done = sync(images, store, through, chosen.as_json(), where=str(place), on_batch=on_batch)
    stderr.name_unreadable(list(map(str, done.unreadable)))
    kept = done.unchanged + done.new + done.changed
    if as_json:
        show.as_json({"collection": str(place), "space": through.space, "kept": kept, **done.as_json()})
    stderr.note(
        f"{kept:,} images in {place}: {done.new:,} new, {done.changed:,} changed, {done.unchanged:,} as before; "
        f"{done.removed:,} removed; space {through.space}"
    )
    stderr.end_by([said.name for said in done.unreadable])


@app.command()
@model_options
def search(
    collection: Made,
    query: Annotated[Path, typer.Argument(metavar="QUERY.jpg", help="The photo to look for.")],
    spec: BackboneSpec,
    top: Annotated[int, typer.Option(min=1, help="Photos to find.")] = 10,
    mask: Mask = None,
    cascade: Cascade = None,
    mode: Mode = None,
    server: Server = None,
    key: Key = None,
    store_key: StoreKey = None,
    as_json: AsJson = False,
    show_page: Annotated[bool, typer.Option("--open", help="Show query and photos in the browser.")] = False,
) -> None:
    """Find the photos of a collection that are most like a photo, by cosine similarity; the search is exact.

    Mask, cascade and backbone are those that the collection was made with, where no flag says others. Vectors of
    another space are refused.
    """
    from contextlib import closing

    from smn.search.opening import open_made
    from smn.search.places import place_of
    from smn.search.through import Chosen, as_indexed, open_through
    from smn_core.verbs import show, stderr

    if server is not None:
        refuse_model(spec)
    if not query.is_file():
        raise InvalidArgument(f"{query} is no file: name one photo")
    place = place_of(collection)
    store, about = open_made(place, _secret(store_key))
    with closing(store):
        spec, chosen = as_indexed(spec, Chosen(mask, cascade, mode, server), about, str(place))
        with open_through(spec, chosen, key=key) as through:
            through.check_same(about, str(place))
            (row,) = through.embed([query])
        if row.vector is None:
            raise InvalidImage(f"{query}: {row.error}")
        found = store.nearest(row.vector, top)
    if show_page:
        import webbrowser

        from smn.search.showing import write_page

        page = write_page(query, found, about.folder, about.space)
        opened = webbrowser.open(page.as_uri())
        stderr.note(f"{'opened' if opened else 'no browser could be opened; the page is'} {page}")
    if as_json:
        told = {"collection": str(place), "query": str(query), "folder": about.folder, "space": about.space}
        show.as_json({**told, "found": [{"path": path, "similarity": near} for path, near in found]})
        return
    show.table(("", "similarity", "photo"), [(str(n), f"{near:.4f}", path) for n, (path, near) in enumerate(found, 1)])
    stderr.note(f"paths are below {about.folder}")


@app.command()
def dedupe(
    collection: Made,
    least: Annotated[
        float, typer.Option("--least", min=0, max=1, help="Cosine similarity from which two photos are near-copies.")
    ] = NEAR_COPY,
    store_key: StoreKey = None,
    as_json: AsJson = False,
) -> None:
    """List the near-copies in a collection: copies, other sizes and encodings, shots in a row. Nothing is deleted.

    Each photo is named once, beside the first photo by path that it resembles. All vectors are held in memory.
    """
    from contextlib import closing

    import numpy as np

    from smn.search.near import near_copies
    from smn.search.opening import open_made
    from smn.search.places import place_of
    from smn_core.verbs import show, stderr

    place = place_of(collection)
    store, about = open_made(place, _secret(store_key))
    with closing(store):
        blocks = list(store.blocks())
    paths = [path for names, _ in blocks for path in names]
    vectors = np.concatenate([z for _, z in blocks]) if blocks else np.empty((0, about.width), np.float32)
    with show.progress("images", len(paths)) as on_batch:
        groups = near_copies(paths, vectors, least, on_batch)
    if as_json:
        told = [
            {"photo": group.image, "copies": [{"path": path, "similarity": near} for path, near in group.copies]}
            for group in groups
        ]
        show.as_json({"collection": str(place), "folder": about.folder, "space": about.space, "groups": told})
        return
    rows = [
        line
        for number, group in enumerate(groups, 1)
        for line in [(str(number), "", group.image), *((str(number), f"{n:.4f}", path) for path, n in group.copies)]
    ]
    show.table(("group", "similarity", "photo"), rows)
    n_copies = sum(len(group.copies) for group in groups)
    stderr.note(
        f"{n_copies:,} near-copies in {len(groups):,} groups of {len(paths):,} photos; paths are below {about.folder}"
    )


def _secret(text: str | None) -> str | None:
    if text is None:
        return None
    from service.settings import secret

    return secret(text, "--store-key")
