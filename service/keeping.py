"""The verbs that look after a whole registry: gc, backup, restore, mirror."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smn_core.errors import InvalidArgument

if TYPE_CHECKING:
    from service.mirror.side import Side
    from service.registry.base import Registry
    from service.registry.whole import WholeRegistry

app = typer.Typer()

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Place = Annotated[str, typer.Argument(metavar="REGISTRY", help="A folder, or a redis:// URL.")]


@app.command()
def gc(
    fingerprint: Annotated[
        str,
        typer.Option(help="The backbone whose masks are looked through, by its fingerprint (GET /info, smn inspect)."),
    ],
    registry: Annotated[
        str, typer.Option(metavar="DIR_OR_URL", envvar="SMN_REGISTRY", help="The registry.")
    ] = "registry",
    grace_s: Annotated[
        float, typer.Option(min=0, help="Keep files that came, or lost their last version, within so many seconds.")
    ] = 3600.0,
    check: Annotated[
        bool, typer.Option("--check", help="Instead: read every record and file, and mend what is damaged.")
    ] = False,
    as_json: Json = False,
    yes: Yes = False,
) -> None:
    """Delete what no version of a registry refers to any more, or find and mend what is damaged. Asks first."""
    from service.registry.open import hide_user, open_registry, require_there
    from smn_core.verbs import show, stderr

    require_there(registry, fingerprint)
    opened = open_registry(registry, fingerprint)
    try:
        if check:
            _check(opened, hide_user(registry), as_json=as_json, yes=yes)
            return
        agree(f"what no version refers to for {grace_s:g} s, in registry {hide_user(registry)}", yes=yes)
        gone = list(opened.collect(grace_s))
    finally:
        opened.close()
    if as_json:
        show.as_json(gone)
    else:
        stderr.note(f"{len(gone)} blobs deleted")


@app.command()
def backup(
    registry: Place,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The archive to write; without --overwrite it must not exist.")
    ],
    fingerprint: Annotated[
        str | None,
        typer.Option(help="Only the masks of the backbone with this fingerprint. Default: all of the registry."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over an archive that exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write a registry into one verified archive, while servers use it."""
    from service.registry.archive import write_archive
    from service.registry.open import backbones_in, hide_user, require_there

    if file.exists() and not overwrite:
        raise InvalidArgument(f"{file} exists: give --overwrite, or another FILE")
    if fingerprint is not None:
        require_there(registry, fingerprint)
    backbones = [fingerprint[:16]] if fingerprint is not None else backbones_in(registry)
    if not backbones:
        raise InvalidArgument(f"{hide_user(registry)} holds no registry")
    held = write_archive(file, backbones, _opener(registry))
    _say([(h.backbone, h.names, len(h.digests)) for h in held], f"in {file}, read again and sound", as_json=as_json)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive of smn backup.")],
    registry: Place,
    as_json: Json = False,
) -> None:
    """Put an archive into a registry; a name that is there already must be the same. The archive is checked first."""
    from service.registry.archive import restore_archive
    from service.registry.open import hide_user

    held = restore_archive(file, _opener(registry))
    _say([(h.backbone, h.names, len(h.digests)) for h in held], f"in {hide_user(registry)}", as_json=as_json)


@app.command()
def mirror(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A registry, a server's URL, or a store's, such as s3://bucket/dir.")
    ],
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="The place that is brought in step with SOURCE; of the same kinds.")
    ],
    once: Annotated[bool, typer.Option("--once", help="Make one turn and end; the default.")] = False,
    every: Annotated[
        float | None, typer.Option(min=1, metavar="S", help="Make turn after turn, S seconds apart.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what DEST has and SOURCE does not.")] = False,
    source_key: Annotated[
        str | None,
        typer.Option(
            envvar="SMN_SOURCE_KEY", help="A key of the server SOURCE; env:NAME reads it from the variable NAME."
        ),
    ] = None,
    dest_key: Annotated[
        str | None, typer.Option(envvar="SMN_DEST_KEY", help="An admin key of the server DEST, likewise.")
    ] = None,
    as_json: Json = False,
    yes: Yes = False,
) -> None:
    """Bring masks and cascades from one place to another: versions, which is current, aliases, notes.

    Every file is checked by its digest. A stopped run goes on. A name that both places have changed is refused, and
    the exit code is then 1.
    """
    from contextlib import closing

    from service.mirror.step import open_side
    from service.settings import secret

    if once and every is not None:
        raise InvalidArgument("--once and --every: give one of them")
    if source.rstrip("/") == dest.rstrip("/"):
        raise InvalidArgument("SOURCE and DEST are one place")
    ours, theirs = "--source-key", "--dest-key"
    with (
        closing(open_side(source, secret(source_key, ours), ours)) as first,
        closing(open_side(dest, secret(dest_key, theirs), theirs)) as second,
    ):
        if delete:
            agree(f"what {second} has and {first} does not", yes=yes)
        _mirror(first, second, every, delete=delete, as_json=as_json)


def agree(what: str, *, yes: bool) -> None:
    """Ask whether `what` may be deleted; on a terminal the user, elsewhere only --yes says so.

    Raises:
        InvalidArgument: nobody can be asked.
        typer.Exit: the user said no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidArgument(f"this deletes {what}: give --yes")
    if not typer.confirm(f"Delete {what}?", err=True):
        raise typer.Exit(1)


def _mirror(first: Side, second: Side, every: float | None, *, delete: bool, as_json: bool) -> None:
    """One turn, or turns without end; then a place that is away is waited for."""
    from dataclasses import asdict
    from threading import Event

    from service.answers import ServerAway
    from service.mirror.step import take_turn
    from smn_core.errors import Unavailable
    from smn_core.verbs import show, stderr

    while True:
        try:
            turn = take_turn(first, second, delete=delete, say=lambda line: None if as_json else stderr.note(line))
        except (ServerAway, Unavailable) as error:
            if every is None:
                raise
            stderr.note(f"{error}; again in {every:g} s")
        else:
            for line in turn.refused:
                stderr.note(f"refused: {line}")
            if as_json:
                show.as_json(asdict(turn))
            elif turn.brought or turn.deleted or turn.refused or every is None:
                stderr.note(
                    f"{len(turn.brought)} names brought ({turn.files} files, {turn.bytes:,} bytes), {turn.in_step} "
                    f"were in step, {len(turn.deleted)} deletions, {len(turn.refused)} refused"
                )
            if every is None:
                if turn.refused:
                    raise typer.Exit(1)
                return
        Event().wait(every)


def _opener(registry: str) -> Callable[[str], WholeRegistry]:
    from service.registry.open import open_registry

    def open_one(backbone: str) -> WholeRegistry:
        opened = open_registry(registry, backbone)
        opened.check()
        return opened

    return open_one


def _check(registry: Registry, place: str, *, as_json: bool, yes: bool) -> None:
    """Look, ask before anything is mended, mend; exit code 1 where something stays wrong."""
    from dataclasses import asdict

    from smn_core.verbs import show, stderr

    found = registry.examine(mend=False)
    if any(finding.what.startswith(("mask ", "cascade ")) for finding in found):
        for finding in found:
            stderr.note(f"{finding.what}: {finding.wrong}")
        agree(f"the damaged records in registry {place}, once their copies or numbers are kept", yes=yes)
        found = registry.examine(mend=True)
    if as_json:
        show.as_json([asdict(finding) for finding in found])
    else:
        for finding in found:
            print(f"{finding.what}: {finding.wrong} ({'mended' if finding.mended else 'not mended'})")
        stderr.note(f"{len(found)} things wrong" if found else "nothing is wrong")
    if not all(finding.mended for finding in found):
        raise typer.Exit(1)


def _say(rows: list[tuple[str, int, int]], where: str, *, as_json: bool) -> None:
    from smn_core.verbs import show

    if as_json:
        show.as_json([{"backbone": backbone, "names": names, "files": files} for backbone, names, files in rows])
        return
    for backbone, names, files in rows:
        print(f"backbone {backbone}: {names} names, {files} files {where}")
