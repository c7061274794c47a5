"""/cascades: upload and read; the rest is in versions.py. Its masks must be in the registry before it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from service.embedding import in_time
from service.reading import read_body
from service.registry.base import Entry, Registry
from service.routes.versions import add_common_routes, answer, guards, in_thread
from service.schemas import CascadeInfo, Written
from service.security import Caller, Changer, OwnName, OwnNameToChange, Reader
from service.server import Server, TheServer
from smn_core.cascade.cascade import Cascade
from smn_core.cascade.file import check_fits, parse_cascade
from smn_core.errors import MissingMasks

router = APIRouter(prefix="/cascades", tags=["cascades"])
add_common_routes(router, "cascades")
NAMES_A_READ = 1000


@router.put("/{name}", status_code=201, response_model=Written, responses={200: {"model": Written}})
async def upload(
    name: OwnNameToChange,
    server: TheServer,
    request: Request,
    response: Response,
    caller: Changer,
    if_match: Annotated[str | None, Header(description='"<digest>": only over this current version.')] = None,
    if_none_match: Annotated[str | None, Header(description="*: only as a new name.")] = None,
) -> dict[str, Any]:
    """Upload a cascade file as the new current version of a name; 422 lists masks that the registry does not hold."""
    guard, absent = guards(if_match, if_none_match)
    async with server.working():
        limit = server.settings.max_body_bytes
        data = await in_time(server, request, lambda: read_body(request, limit))
        cascade = await asyncio.get_running_loop().run_in_executor(server.decoders, _check, server, data)
        if caller.prefix:
            await in_thread(server, lambda: _require_own(server.registry, caller.prefix, name, cascade))
        done = await in_thread(
            server,
            lambda: server.registry.publish(
                "cascades", name, data, needs=cascade.masks, if_match=guard, if_absent=absent
            ),
        )
    return answer(name, done, [], response)


@router.get("/{name}", response_model=CascadeInfo)
async def read(name: OwnName, server: TheServer, caller: Reader) -> dict[str, Any]:
    """Versions, and the current one's masks, by a name that holds each, fusion and modes."""
    entry = server.registry.entry("cascades", name)
    async with server.embedder.hold_cascade(entry.current.digest) as cascade:
        places = await in_thread(server, lambda: _places(server.registry, caller.prefix, name, cascade))
    width = server.backbone.n_features
    return {
        "name": name,
        "current": {"version": entry.current.version, "digest": entry.current.digest},
        "versions": [vars(version) for version in entry.versions],
        "metadata": {**cascade.metadata, "fingerprint": cascade.fingerprint},
        "masks": places,
        "fusion": cascade.fusion.kind,
        "mode": cascade.mode,
        "modes": {mode: cascade.width(mode, width) for mode in cascade.modes},
    }


def _check(server: Server, data: bytes) -> Cascade:
    """The cascade that the bytes are, if it is this backbone's."""
    cascade = parse_cascade(data)
    check_fits(cascade, server.backbone)
    return cascade


def _require_own(registry: Registry, prefix: str, name: str, cascade: Cascade) -> None:
    """A key bound to names may build on masks of these names alone: others' cannot be used, or held fast, by digest.

    Raises:
        MissingMasks: it lists what the caller does not have, in the registry or not.
    """
    places = _places(registry, prefix, name, cascade)
    if missing := list(dict.fromkeys(place["digest"] for place in places if place["name"] is None)):
        raise MissingMasks(f"cascade {name} needs masks that are not among yours: {', '.join(missing)}")


def _places(registry: Registry, prefix: str, name: str, cascade: Cascade) -> list[dict[str, Any]]:
    """A name and version for every mask, `<name>.` first, among names that begin with a prefix."""
    found: dict[str, tuple[str, int]] = {}
    for entry in _entries(registry, prefix):
        for version in entry.versions:
            known = found.get(version.digest)
            if known is None or (entry.name.startswith(f"{name}.") and not known[0].startswith(f"{name}.")):
                found[version.digest] = entry.name, version.version
    return [
        {"digest": digest, "name": found.get(digest, (None, None))[0], "version": found.get(digest, (None, None))[1]}
        for digest in cascade.masks
    ]


def _entries(registry: Registry, prefix: str) -> Iterator[Entry]:
    after = Caller(admin=False, prefix=prefix).after("")
    while page := registry.names("masks", NAMES_A_READ, after):
        for entry in page:
            if not entry.name.startswith(prefix):
                return
            yield entry
        after = page[-1].name
