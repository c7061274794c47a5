"""The verbs of serving: serve, and those that talk to a server: push, pull, list, rollback, delete; and gc."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.flags import SettingsCommand, said
from smn_core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.client import Client, Kind
    from service.settings import Settings

app = typer.Typer()

Server = Annotated[str, typer.Option(metavar="URL", envvar="SMN_SERVER", help="The server.")]
KeyOption = Annotated[
    str | None, typer.Option("--key", envvar="SMN_KEY", help="A key of the server; env:NAME is the variable NAME's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
LOCAL = "http://127.0.0.1:8000"


@app.command(cls=SettingsCommand)
def serve(ctx: typer.Context) -> None:
    """Serve a backbone and a registry's masks over HTTP. Options are variables too: --max-images, SMN_MAX_IMAGES."""
    settings = _settings(said(ctx))

    from service.telemetry import configure_logs
    from smn_core.verbs.show import note

    configure_logs(settings.log_format)
    note(f"loading {settings.spec().name}")
    if settings.on == "ray":
        _serve_on_ray(settings)
        return

    from service.app import create_app
    from service.listen import run

    application = create_app(settings)
    note(f"serving on http://{settings.host}:{settings.port} (docs at /docs, stop with ctrl-C)")
    run(application, settings.host, settings.port, settings.drain_s)


@app.command()
def push(
    file: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="A mask file, or the folder of a cascade.")],
    name: Annotated[str, typer.Option(help="Its name on the server.")],
    server: Server = LOCAL,
    key: KeyOption = None,
    if_match: Annotated[str | None, typer.Option(metavar="DIGEST", help="Only over this current version.")] = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only as a new name.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a mask, or a cascade with its masks as NAME.root, NAME.expert-1 ..., as the new version of a name."""
    with _client(server, key) as client:
        push = client.push_cascade if file.is_dir() else client.push
        done = push(name, file, if_match=if_match, if_absent=if_absent)
    _written(done, as_json=as_json)


@app.command()
def pull(
    reference: Annotated[str, typer.Argument(metavar="REF", help="name, name@version, or cascade:name.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE_OR_DIR", help="Default: NAME.smn, of a cascade the folder NAME.")
    ] = None,
    server: Server = LOCAL,
    key: KeyOption = None,
) -> None:
    """Download a mask file, or a cascade with its masks."""
    from smn_core.files import write_bytes
    from smn_core.verbs.show import note

    kind, name = _kind_of(reference)
    name, _, version = name.partition("@")
    if version and (kind == "cascades" or not version.isdigit()):
        raise InvalidArgument(f"{reference!r}: pull takes name, name@version, or cascade:name")
    if kind == "cascades":
        folder = out or Path(name)
        with _client(server, key) as client:
            client.pull_cascade(name, folder)
        note(f"cascade {name} in {folder}")
        return
    with _client(server, key) as client:
        data = client.pull(name, int(version) if version else None)
    path = out or Path(f"{name}.smn")
    write_bytes(path, data)
    note(f"{len(data):,} bytes in {path}")


@app.command("list")
def list_masks(
    cascades: Annotated[bool, typer.Option("--cascades", help="The cascades instead.")] = False,
    server: Server = LOCAL,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """List the masks, or the cascades, of a server."""
    from smn_core.verbs import show

    with _client(server, key) as client:
        found = client.names("cascades" if cascades else "masks")
    if as_json:
        show.as_json(found)
        return
    rows = [(m["name"], str(m["current"]["version"]), str(m["versions"]), m["current"]["digest"]) for m in found]
    show.table(("name", "current", "versions", "digest"), rows)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A mask's name, or cascade:name.")],
    version: Annotated[int, typer.Argument(metavar="VERSION", help="The version to make current.")],
    server: Server = LOCAL,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Make an earlier or later version the current one."""
    kind, name = _kind_of(name)
    with _client(server, key) as client:
        done = client.rollback(name, version, kind)
    _written(done, as_json=as_json)


@app.command()
def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A mask's name, or cascade:name.")],
    version: Annotated[int | None, typer.Option(help="Only this version.")] = None,
    server: Server = LOCAL,
    key: KeyOption = None,
) -> None:
    """Delete a mask or cascade, or one of its versions. A cascade's masks stay."""
    kind, name = _kind_of(name)
    with _client(server, key) as client:
        client.delete(name, version, kind)


@app.command()
def gc(
    fingerprint: Annotated[str, typer.Option(help="Of the backbone whose masks it holds (GET /info, smn inspect).")],
    registry: Annotated[
        str, typer.Option(metavar="DIR_OR_URL", envvar="SMN_REGISTRY", help="The registry.")
    ] = "registry",
    grace_s: Annotated[
        float, typer.Option(min=0, help="Leave blobs that are younger, or lost their last version later.")
    ] = 3600.0,
    as_json: Json = False,
) -> None:
    """Delete what no version of a registry refers to any more."""
    from service.registry.open import open_registry
    from smn_core.verbs import show

    opened = open_registry(registry, fingerprint)
    try:
        gone = list(opened.collect(grace_s))
    finally:
        opened.close()
    if as_json:
        show.as_json(gone)
    else:
        show.note(f"{len(gone)} blobs deleted")


def _serve_on_ray(settings: Settings) -> None:
    from importlib.util import find_spec

    from smn_core.verbs.show import note

    if find_spec("ray") is None or find_spec("ray.serve") is None:
        raise InvalidArgument("--on ray needs the extra ray: uv pip install '.[ray]'")

    from service.on_ray.application import run

    run(settings, lambda: note(f"serving on http://{settings.host}:{settings.port} (docs at /docs, stop with ctrl-C)"))


def _kind_of(reference: str) -> tuple[Kind, str]:
    """`cascade:name` -> cascades, everything else -> masks."""
    before, colon, name = reference.partition(":")
    return ("cascades", name) if colon and before == "cascade" else ("masks", reference)


@contextmanager
def _client(server: str, key: str | None) -> Iterator[Client]:
    from service.client import Client
    from service.settings import secret

    with Client(server, secret(key)) as client:
        yield client


def _settings(given: dict[str, Any]) -> Settings:
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise InvalidArgument(f"--{flag} (SMN_{str(first['loc'][0]).upper()}): {first['msg']}") from error


def _written(done: dict[str, Any], *, as_json: bool) -> None:
    from smn_core.verbs import show

    if as_json:
        show.as_json(done)
        return
    print(f"{done['name']}@{done['version']} {done['digest']} ({done['bytes']:,} bytes)")
    for warning in done["warnings"]:
        show.note(f"warning: {warning}")
