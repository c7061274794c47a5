"""The verbs of serving: serve, and those that talk to a server: push, pull, list, rollback, delete, alias."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.flags import SettingsCommand, files_of, said
from service.keeping import Yes, agree
from service.keeping import app as registry_verbs
from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import model_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.client import Client, Kind
    from service.offer import Offer
    from service.settings import Settings
    from smn_core.backbone import Backbone

app = typer.Typer()
app.add_typer(registry_verbs)

Server = Annotated[str, typer.Option(metavar="URL", envvar="SMN_SERVER", help="The server.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar="SMN_KEY", help="A key of the server; env:NAME reads it from the variable NAME."),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="Hub: a token; env:NAME reads it from the variable NAME. Default: HF_TOKEN, or what hf auth login saved.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
LOCAL = "http://127.0.0.1:8000"


@app.command(cls=SettingsCommand)
def serve(ctx: typer.Context) -> None:
    """Serve a backbone and a registry's masks over HTTP. `smn serve photos.smn` serves what train or adapt wrote.

    Options are variables too: --max-images, SMN_MAX_IMAGES. Without --registry masks are kept in ./registry.
    """
    given, files = said(ctx), files_of(ctx)
    settings = _settings(given)
    offers = _read_offers(files, settings.masks_from) if files or settings.masks_from else []
    settings = _settle(given, offers) if offers else settings

    from service.telemetry import configure_logs
    from smn_core.verbs.stderr import note

    configure_logs(settings.log_format)
    note(f"loading {settings.spec().name}")
    if settings.on == "ray":
        _serve_on_ray(settings, offers)
        return

    from service.app import create_app, registry_of
    from service.listen import bind, run
    from service.offer import put_in
    from service.security import guard_of
    from smn_core.backbone import load_backbone

    # Refused before anything is loaded or written: a start that fails makes no version current for other servers.
    guard_of(settings)
    bind(settings.host, settings.port, backlog=1).close()
    backbone = registry = None
    if offers:
        backbone = load_backbone(settings.spec())
        registry = registry_of(settings, backbone)
        for line in put_in(registry, backbone, offers):
            note(line)
    application = create_app(settings, backbone, registry)
    run(application, lambda port: _say_serving(settings, port, offers))


@app.command()
@model_options
def push(
    file: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="A mask file, or the folder of a cascade.")],
    spec: BackboneSpec,
    hub: Annotated[
        str | None, typer.Argument(metavar="[hf:USER/NAME]", help="A place on the Hub, or one of its branches, @NAME.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name on the server.")] = None,
    server: Server = LOCAL,
    key: KeyOption = None,
    if_match: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="Push only where this digest is the current version.")
    ] = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Push only where the name is new.")] = False,
    codec: Annotated[
        str | None, typer.Option(help="Write the bits in another codec first: raw, zstd or context.")
    ] = None,
    token: TokenOption = None,
    private: Annotated[
        bool, typer.Option("--private", help="Hub: make the repository private, where this push makes it.")
    ] = False,
    no_card: Annotated[bool, typer.Option("--no-card", help="Hub: leave the card of the repository as it is.")] = False,
    base_model: Annotated[
        str | None, typer.Option(metavar="TIMM/NAME", help="Hub: where the backbone lies on the Hub, for the card.")
    ] = None,
    license: Annotated[str | None, typer.Option(metavar="ID", help="Hub: the licence, for the card.")] = None,
    as_json: Json = False,
) -> None:
    """Upload a mask, or a cascade with its masks as NAME.root, NAME.expert-1 ..., as the new version of a name.

    With hf:USER/NAME a mask goes to the Hub instead, with a card.
    """
    if (hub is None) == (name is None):
        raise InvalidArgument("push takes FILE --name NAME, for a server, or FILE hf:USER/NAME, for the Hub")
    if hub is not None:
        from service.sharing import push_to_hub

        if if_match is not None or if_absent or codec is not None:
            raise InvalidArgument("--if-match, --if-absent and --codec are for a server")
        push_to_hub(
            file, hub, token=token, private=private, with_card=not no_card, base_model=base_model, license=license,
            as_json=as_json,
        )  # fmt: skip
        return
    assert name is not None
    from service.transfer import recoded

    with _client(server, key) as client, recoded(file, codec, spec) as made:
        push = client.push_cascade if file.is_dir() else client.push
        done = push(name, made, if_match=if_match, if_absent=if_absent)
    _written(done, as_json=as_json)
    _say_next(server, f"{'cascade' if file.is_dir() else 'mask'}={done['name']}", keyed=key is not None)


@app.command()
def pull(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="name, name@version, cascade:name, or hf:user/name[@revision].")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE_OR_DIR", help="Where to write it. Default: NAME.smn, for a cascade the folder NAME."
        ),
    ] = None,
    server: Server = LOCAL,
    key: KeyOption = None,
    token: TokenOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file or folder that exists.")] = False,
) -> None:
    """Download a mask file, with the parent that it is coded against, or a cascade with its masks."""
    if reference.startswith("hf:"):
        from service.sharing import pull_from_hub

        pull_from_hub(reference, out, token=token, overwrite=overwrite)
        return

    from service.registry.base import parse_reference
    from service.transfer import pull_mask
    from smn_core.verbs.stderr import note

    kind, name = _kind_of(reference)
    try:
        name, version = parse_reference(name)
    except InvalidArgument as error:
        raise InvalidArgument(f"{error}; pull takes name, name@version, or cascade:name") from error
    if isinstance(version, str) or (kind == "cascades" and version is not None):
        raise InvalidArgument(f"{reference!r}: pull takes name, name@version, or cascade:name")
    path = out or Path(name if kind == "cascades" else f"{name}.smn")
    if path.exists() and not overwrite:
        raise InvalidArgument(f"{path} exists: give --overwrite, or another --out")
    if kind == "cascades":
        with _client(server, key) as client:
            client.pull_cascade(name, path, overwrite=overwrite)
        note(f"cascade {name} in {path}")
        return
    with _client(server, key) as client:
        for written, size in pull_mask(client, name, version, path, overwrite=overwrite):
            note(f"{size:,} bytes in {written}")


@app.command("list")
def list_masks(
    cascades: Annotated[bool, typer.Option("--cascades", help="List the cascades instead of the masks.")] = False,
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
    version: Annotated[int | None, typer.Option(help="Delete only this version.")] = None,
    server: Server = LOCAL,
    key: KeyOption = None,
    yes: Yes = False,
) -> None:
    """Delete a mask or cascade, or one of its versions. A cascade's masks stay. Asks first."""
    from service.calls import hide_user
    from smn_core.names import check_name
    from smn_core.verbs.stderr import note

    kind, name = _kind_of(name)
    check_name(name)
    part = "with all its versions" if version is None else f"version {version}"
    what = f"{kind[:-1]} {name}, {part}, on {hide_user(server)}"
    agree(what, yes=yes)
    with _client(server, key) as client:
        client.delete(name, version, kind)
    note(f"deleted {what}")


@app.command()
def alias(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A mask's name, or cascade:name.")],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The word that will mean the version, as NAME@ALIAS.")],
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", help="The version that it means; none with --delete.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Forget the alias; its version stays.")] = False,
    server: Server = LOCAL,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Let NAME@ALIAS mean a version, such as photos@champion, until it is moved or deleted."""
    from smn_core.verbs.show import as_json as print_json
    from smn_core.verbs.stderr import note

    if delete == (version is not None):
        raise InvalidArgument("alias takes NAME ALIAS VERSION, or NAME ALIAS --delete")
    kind, name = _kind_of(name)
    done: dict[str, Any] = {"name": name, "alias": alias, "version": None, "warnings": []}
    with _client(server, key) as client:
        if version is None:
            client.delete_alias(name, alias, kind)
        else:
            done = client.set_alias(name, alias, version, kind)
    if as_json:
        print_json(done)
    elif version is None:
        note(f"deleted {name}@{alias}")
    else:
        print(f"{name}@{alias} is {name}@{version}")
        for warning in done["warnings"]:
            note(f"warning: {warning}")


def _read_offers(files: list[Path], addresses: list[str]) -> list[Offer]:
    from service.offer import read_offers

    return read_offers(files, addresses)


def _settle(given: dict[str, Any], offers: list[Offer]) -> Settings:
    from service.offer import settle

    return settle(given, offers, _settings)


def _say_serving(settings: Settings, port: int, offers: list[Offer]) -> None:
    """The first lines of a server that answers."""
    from service.hints import say_try, url_of
    from smn_core.verbs.stderr import note

    where = "docs at /docs" if settings.no_console else "open it in a browser; docs at /docs"
    note(f"serving on {url_of(settings.host, port)} ({where}, stop with ctrl-C)")
    if offers:
        keyed = bool(settings.api_keys or settings.admin_keys)
        note(f"try: {say_try(url_of(settings.host, port), f'mask={offers[0].name}', keyed=keyed)}")


def _serve_on_ray(settings: Settings, offers: list[Offer]) -> None:
    from importlib.util import find_spec

    from smn_core.verbs.stderr import note

    if find_spec("ray") is None or find_spec("ray.serve") is None:
        raise InvalidArgument("--on ray needs the extra ray: uv pip install -e '.[ray]'")

    from service.offer import put_in
    from service.on_ray.application import run
    from service.registry.open import open_registry

    def push_first(backbone: Backbone) -> None:
        """Every replica finds the masks in the registry, which is all that they share with this machine."""
        if not offers:
            return
        registry = open_registry(settings.registry, backbone.fingerprint)
        try:
            note("on Ray the files are pushed to the registry first, where every replica finds them")
            for line in put_in(registry, backbone, offers):
                note(line)
        finally:
            registry.close()

    run(settings, lambda: _say_serving(settings, settings.port, offers), push_first)


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


def _say_next(server: str, reference: str, *, keyed: bool) -> None:
    from service.hints import say_try
    from smn_core.verbs.stderr import note

    note(f"next: {say_try(server.rstrip('/'), reference, keyed=keyed)}")


def _written(done: dict[str, Any], *, as_json: bool) -> None:
    from smn_core.verbs import show, stderr

    if as_json:
        show.as_json(done)
        return
    print(f"{done['name']}@{done['version']} {done['digest']} ({done['bytes']:,} bytes)")
    for warning in done["warnings"]:
        stderr.note(f"warning: {warning}")
