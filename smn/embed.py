"""The verb `smn embed`: images into a file of vectors, in this process or through a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import OPTIONS, model_options

if TYPE_CHECKING:
    from smn_core.answers import Skipped
    from smn_core.imageset import ImageSet
    from smn_core.verbs.vectorfile import Table

app = typer.Typer()
ROOT = "root"


@app.command()
@model_options
def embed(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="An image folder, or an .npz of uint8 arrays x_train, x_test.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="X.npy",
            help="The vectors; X.npz and X.parquet hold path, label, space too. X.json beside it says what they are.",
        ),
    ],
    spec: BackboneSpec,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The mask: a file, or with --server a name there. Default: root, the untouched backbone.",
        ),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The mask that --mask is coded against, where it is not beside it."),
    ] = None,
    cascade: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A cascade instead of a mask: its folder, or with --server a name there."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="The cascade's mode: unconditional or conditional. Default: the one that it names."),
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Keep only the first so many components of each vector.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Embed one split alone, such as train or test: a subfolder, or x_NAME of an .npz."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be read.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass; without a server.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode images; without a server.")] = 2,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Embed through this server. A stopped run goes on by itself.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", envvar="SMN_KEY", help="A key of the server; env:NAME reads it from the variable NAME."),
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests under way at once; with a server.")] = 4,
) -> None:
    """Embed a folder or an .npz of images through a mask or a cascade, here or through a server.

    Rows are in sorted order of paths; of X.npy the paths are in X.txt. An image that cannot be read has no row. It is
    named and counted, and the exit code is then 1. With --server the same command goes on after ctrl-C.
    """
    from smn_core.imageset import FolderSet, open_images
    from smn_core.verbs.stderr import count_others, end_by, name_unreadable, note
    from smn_core.verbs.vectorfile import check_out, write_table

    check_out(out)
    if mask is not None and cascade is not None:
        raise InvalidArgument("--mask and --cascade: give one of them")
    if mode is not None and cascade is None:
        raise InvalidArgument("--mode is for a --cascade")
    mask = None if mask == ROOT else mask
    if server is not None:
        refuse_model(spec)
    images = open_images(data, split)
    others = images.others if isinstance(images, FolderSet) else {}
    count_others(others)
    if parent is not None and (mask is None or server is not None):
        raise InvalidArgument("--parent is for a --mask FILE")
    through = Through(mask, cascade, mode, dimensions, parent)
    if server is None:
        making = _here(spec, images, out, through, batch_size=batch_size, workers=workers, strict=strict)
    else:
        making = _there(server, key, images, data, out, through, in_flight=in_flight, strict=strict)
    with making as made:
        told = {"images": len(images.names), "unreadable": made.skipped, "other_files": dict(others)}
        removed = write_table(made.table, out, {**made.facts, **told})
    for path in removed:
        note(f"removed {path}, of an older {out.stem}")
    name_unreadable([f"{said['path']}: {said['reason']}" for said in made.skipped])
    note(f"{len(made.table.order):,} embeddings of {made.table.width} features in {out}, space {made.table.space}")
    end_by([said["path"] for said in made.skipped])


@dataclass(frozen=True)
class Through:
    """What images go through: a mask or a cascade, as a path or as its name on a server, or neither."""

    mask: str | None
    cascade: str | None
    mode: str | None
    dimensions: int | None
    parent: Path | None = None


@dataclass(frozen=True)
class Made:
    """Vectors that are ready to be written, the images without one, and what they went through."""

    table: Table
    skipped: Sequence[dict[str, str]]
    facts: dict[str, Any]


@contextmanager
def _here(
    spec: BackboneSpec,
    images: ImageSet,
    out: Path,
    through: Through,
    *,
    batch_size: int,
    workers: int,
    strict: bool,
) -> Iterator[Made]:
    """Embed in this process. What was made is gone after the block, however it ends."""
    import numpy as np

    from smn_core.verbs.loading import way_through_cascade, way_through_mask
    from smn_core.verbs.offline import embed_to_rows
    from smn_core.verbs.show import images_progress
    from smn_core.verbs.vectorfile import Table, named, scratch

    if through.cascade is not None:
        way = way_through_cascade(spec, Path(through.cascade), through.mode, through.dimensions)
    else:
        mask = Path(through.mask) if through.mask is not None else None
        way = way_through_mask(spec, mask, through.dimensions, through.parent)
    with scratch(out) as raw:
        with raw.open("wb") as file, images_progress(len(images.names)) as on_batch:
            kept, skipped = embed_to_rows(
                images,
                way.engine,
                way.embed,
                file,
                batch_size=batch_size,
                workers=workers,
                strict=strict,
                on_batch=on_batch,
            )
        paths, labels = named(images, kept)
        table = Table(raw, way.width, np.arange(len(kept)), paths, labels, way.space)
        missing = sorted(set(range(len(images.names))) - set(kept))
        left = [_of_set(images, i, reason).as_json() for i, reason in zip(missing, skipped, strict=True)]
        yield Made(table, left, way.facts())


@contextmanager
def _there(
    server: str,
    key: str | None,
    images: ImageSet,
    data: Path,
    out: Path,
    through: Through,
    *,
    in_flight: int,
    strict: bool,
) -> Iterator[Made]:
    """Embed through a server. What was made is kept for the next try, unless the block ends well."""
    from service.client import Client
    from service.remote import embed_set, table_of
    from service.settings import secret
    from smn_core.verbs.journal import Journal
    from smn_core.verbs.show import images_progress
    from smn_core.verbs.stderr import note

    with (
        Client(server, secret(key), in_flight=in_flight) as client,
        Journal(out.with_name(f"{out.name}.part")) as journal,
    ):
        if journal.entries:
            note(f"going on: {len(journal.entries):,} images are in {journal.folder}")
        with images_progress(len(images.names)) as on_batch:
            asked = {"mask": through.mask, "cascade": through.cascade, "mode": through.mode}
            embed_set(client, images, asked, through.dimensions, journal, file=data, strict=strict, on_batch=on_batch)
        table, skipped = table_of(images, journal)
        yield Made(table, [left.as_json() for left in skipped], journal.facts)
        journal.remove()


def _of_set(images: ImageSet, number: int, reason: str) -> Skipped:
    """An image that a reader of the set named by its whole path, named as the set does."""
    from smn_core.answers import Skipped
    from smn_core.imageset import FolderSet

    name = images.names[number]
    where = f"{images.root / name}: " if isinstance(images, FolderSet) else ""
    return Skipped(number, name, reason.removeprefix(where))


def refuse_model(spec: BackboneSpec) -> None:
    """Raise InvalidArgument if a flag says something of the model: the server has its own."""
    plain = BackboneSpec("")
    for option in OPTIONS:
        if getattr(spec, option.field) != getattr(plain, option.field) and option.field not in spec.by_variable:
            raise InvalidArgument(f"--{option.name.replace('_', '-')} is not for --server, which has its own backbone")
