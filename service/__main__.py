"""The verbs of serving: serve, and those that talk to a server: push, pull, list, rollback, delete; and gc."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smn_core.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.client import Client

app = typer.Typer()

Server = Annotated[str, typer.Option(metavar="URL", envvar="SMN_SERVER", help="The server.")]
KeyOption = Annotated[str | None, typer.Option("--key", envvar="SMN_KEY", help="A key of the server.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
LOCAL = "http://127.0.0.1:8000"


@app.command()
def serve(
    registry: Annotated[str | None, typer.Option(metavar="DIR_OR_URL", help="[default: registry]")] = None,
    host: Annotated[str | None, typer.Option(help="Address. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port. [default: 8000]")] = None,
    preload: Annotated[str | None, typer.Option(metavar="REF,...", help="Resident before the server is ready.")] = None,
    pin: Annotated[str | None, typer.Option(metavar="REF,...", help="Kept in memory whatever the budget.")] = None,
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help="timm model name. [default: resnet50]")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Checkpoint; else timm's own.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="create_model argument.")] = None,
    image_size: Annotated[int | None, typer.Option(metavar="PX", help="Side of the input.")] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="Pixel mean.")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Pixel deviation.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, auto.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.")] = None,
    slots: Annotated[int | None, typer.Option(help="Masks resident at once. [default: by --slot-bytes]")] = None,
    slot_bytes: Annotated[int | None, typer.Option(help="Memory for slots. [default: 2 GiB]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a forward. [default: 32]")] = None,
    threads: Annotated[int | None, typer.Option(help="torch's threads; 0: torch's default.")] = None,
    decode_workers: Annotated[int | None, typer.Option(help="Threads that decode. [default: 2]")] = None,
    cache_bytes: Annotated[int | None, typer.Option(help="Host memory for masks. [default: 1 GiB]")] = None,
    queue_images: Annotated[int | None, typer.Option(help="Images admitted at once. [default: 512]")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest body. [default: 64 MiB]")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of an image. [default: 51 million]")] = None,
    max_images: Annotated[int | None, typer.Option(help="Most images of a request. [default: 64]")] = None,
    timeout_ms: Annotated[int | None, typer.Option(help="Deadline of a request. [default: 30000]")] = None,
    drain_s: Annotated[float | None, typer.Option(help="Longest drain after SIGTERM. [default: 20]")] = None,
    api_keys: Annotated[str | None, typer.Option(metavar="KEY,...", help="May embed and read.")] = None,
    admin_keys: Annotated[str | None, typer.Option(metavar="KEY,...", help="May change masks.")] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="Serve beyond loopback without keys.")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or console.")] = None,
) -> None:  # fmt: skip
    """Serve a backbone and the masks of a registry over HTTP. Every option has an SMN_ variable."""
    given = {name: value for name, value in locals().items() if value is not None}
    settings = _settings(given)

    from service.app import create_app
    from service.server import run
    from service.telemetry import configure_logs
    from smn_core.show import note

    configure_logs(settings.log_format)
    application = create_app(settings)
    note(f"serving on http://{settings.host}:{settings.port} (docs at /docs, stop with ctrl-C)")
    run(application, settings.host, settings.port, settings.drain_s)


@app.command()
def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A mask file.")],
    name: Annotated[str, typer.Option(help="Its name on the server.")],
    server: Server = LOCAL,
    key: KeyOption = None,
    if_match: Annotated[str | None, typer.Option(metavar="DIGEST", help="Only over this current version.")] = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only as a new name.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a mask as the new current version of a name."""
    with _client(server, key) as client:
        done = client.push(name, file, if_match=if_match, if_absent=if_absent)
    _written(done, as_json=as_json)


@app.command()
def pull(
    reference: Annotated[str, typer.Argument(metavar="REF", help="name or name@version.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="[default: NAME.smn]")] = None,
    server: Server = LOCAL,
    key: KeyOption = None,
) -> None:
    """Download a mask file."""
    from smn_core.files import write_bytes
    from smn_core.show import note

    name, _, version = reference.partition("@")
    if version and not version.isdigit():
        raise InvalidArgument(f"{reference!r}: pull takes name or name@version")
    with _client(server, key) as client:
        data = client.pull(name, int(version) if version else None)
    path = out or Path(f"{name}.smn")
    write_bytes(path, data)
    note(f"{len(data):,} bytes in {path}")


@app.command("list")
def list_masks(server: Server = LOCAL, key: KeyOption = None, as_json: Json = False) -> None:
    """List the masks of a server."""
    from smn_core import show

    with _client(server, key) as client:
        found = client.masks()
    if as_json:
        show.as_json(found)
        return
    rows = [(m["name"], str(m["current"]["version"]), str(m["versions"]), m["current"]["digest"]) for m in found]
    show.table(("name", "current", "versions", "digest"), rows)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A mask's name.")],
    version: Annotated[int, typer.Argument(help="The version to make current.")],
    server: Server = LOCAL,
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Make an earlier or later version the current one."""
    with _client(server, key) as client:
        done = client.rollback(name, version)
    _written(done, as_json=as_json)


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="A mask's name.")],
    version: Annotated[int | None, typer.Option(help="Only this version.")] = None,
    server: Server = LOCAL,
    key: KeyOption = None,
) -> None:
    """Delete a mask, or one of its versions."""
    with _client(server, key) as client:
        client.delete(name, version)


@app.command()
def gc(
    fingerprint: Annotated[str, typer.Option(help="Of the backbone whose masks it holds (GET /info, smn inspect).")],
    registry: Annotated[
        str, typer.Option(metavar="DIR_OR_URL", envvar="SMN_REGISTRY", help="The registry.")
    ] = "registry",
    grace_s: Annotated[float, typer.Option(min=0, help="Leave blobs younger than this.")] = 3600.0,
    as_json: Json = False,
) -> None:
    """Delete what no version of a registry refers to any more."""
    from service.registry.open import open_registry
    from smn_core import show

    opened = open_registry(registry, fingerprint)
    try:
        gone = list(opened.collect(grace_s))
    finally:
        opened.close()
    if as_json:
        show.as_json(gone)
    else:
        show.note(f"{len(gone)} blobs deleted")


@contextmanager
def _client(server: str, key: str | None) -> Iterator[Client]:
    from service.client import Client

    with Client(server, key) as client:
        yield client


def _settings(given: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise InvalidArgument(f"--{flag} (SMN_{str(first['loc'][0]).upper()}): {first['msg']}") from error


def _written(done: dict[str, Any], *, as_json: bool) -> None:
    from smn_core import show

    if as_json:
        show.as_json(done)
        return
    print(f"{done['name']}@{done['version']} {done['digest']} ({done['bytes']:,} bytes)")
    for warning in done["warnings"]:
        show.note(f"warning: {warning}")
