"""/cascades: upload and read; the rest is in versions.py. Its masks must be in the registry before it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from service.embedding import in_time
from service.reading import read_body
from service.registry.base import Entry, Hold, Published, Registry, Version
from service.routes.versions import (
    FILE_BODY,
    add_common_routes,
    answer,
    changing,
    find_masks,
    guards,
    reading,
    version_table,
)
from service.schemas import CascadeInfo, Written
from service.security import Changer, OwnName, OwnNameToChange, Reader
from service.server import Server, TheServer
from service.spaces import Facts
from smn_core.cascade.cascade import Cascade
from smn_core.cascade.file import check_fits, parse_cascade
from smn_core.errors import MissingMasks
from smn_core.spaces import shape_space
from smn_core.vectors import vectors_of_cascade

router = APIRouter(prefix="/cascades", tags=["cascades"])
add_common_routes(router, "cascades")


@router.put(
    "/{name}",
    status_code=201,
    response_model=Written,
    responses={200: {"model": Written}},
    openapi_extra={"requestBody": FILE_BODY},
)
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

        def publish() -> tuple[Published, list[str]]:
            tied = _tie(server, caller.prefix, name, cascade)
            of_masks = [server.spaces.vectors("masks", tied[digest][1]) for digest in cascade.masks]
            facts = Facts(vectors_of_cascade(cascade, of_masks), cascade.mode)
            space = shape_space(server.spaces.name(facts.vectors), mode=cascade.mode)
            moved = server.spaces.warn("cascades", name, server.spaces.current("cascades", name), space)
            done = server.registry.publish(
                "cascades",
                name,
                data,
                holds=[Hold(digest, of, version.version) for digest, (of, version) in tied.items()],
                vectors=facts.vectors,
                if_match=guard,
                if_absent=absent,
            )
            server.spaces.keep(done.version.digest, facts)
            return done, moved

        done, warnings = await changing(server, request, publish)
    return answer(name, done, warnings, response)


@router.get("/{name}", response_model=CascadeInfo)
async def read(name: OwnName, server: TheServer, request: Request, caller: Reader) -> dict[str, Any]:
    """Versions, and the current one's masks, by a name that holds each, fusion and modes."""
    entry = server.registry.entry("cascades", name)
    async with server.embedder.hold_cascade(entry.current.digest) as cascade:
        places = await reading(server, request, lambda: _places(server.registry, caller.prefix, entry, cascade))
        vectors = await reading(server, request, lambda: server.spaces.vectors("cascades", entry.current))
        server.spaces.keep(entry.current.digest, Facts(vectors, cascade.mode))
    spaces = {mode: shape_space(server.spaces.name(vectors), mode=mode) for mode in cascade.modes}
    width = server.backbone.n_features
    return {
        "name": name,
        "current": {"version": entry.current.version, "digest": entry.current.digest},
        "versions": [version_table(version) for version in entry.versions],
        "aliases": dict(entry.aliases),
        "vectors": vectors,
        "space": spaces[cascade.mode],
        "spaces": spaces,
        "metadata": {**cascade.metadata, **_classes_of(cascade), "fingerprint": cascade.fingerprint},
        "masks": places,
        "fusion": cascade.fusion.kind,
        "mode": cascade.mode,
        "modes": {mode: cascade.width(mode, width) for mode in cascade.modes},
    }


def _classes_of(cascade: Cascade) -> dict[str, Any]:
    """The classes of its heads, and the modes that have one; nothing without a head."""
    if not cascade.heads:
        return {}
    return {"heads": list(cascade.heads), "classes": list(next(iter(cascade.heads.values())).classes)}


def _check(server: Server, data: bytes) -> Cascade:
    """The cascade that the bytes are, if it is this backbone's."""
    cascade = parse_cascade(data)
    check_fits(cascade, server.backbone)
    return cascade


def _tie(server: Server, prefix: str, name: str, cascade: Cascade) -> dict[str, tuple[str, Version]]:
    """The version that the cascade will hold for each of its digests, among names that begin with a prefix.

    Raises:
        MissingMasks: it lists what the caller does not have, in the registry or not.
    """
    found = find_masks(server.registry, prefix, name, cascade.masks)
    if missing := [digest for digest in dict.fromkeys(cascade.masks) if digest not in found]:
        whose = "among yours" if prefix else "in the registry"
        raise MissingMasks(f"cascade {name} needs masks that are not {whose}: {', '.join(missing)}")
    return found


def _places(registry: Registry, prefix: str, entry: Entry, cascade: Cascade) -> list[dict[str, Any]]:
    """What the cascade holds for each of its masks; no name where the caller may not see it.

    Of a cascade that was uploaded before there were holds: any version that has the digest.
    """
    found = {hold.digest: (hold.name, hold.version) for hold in entry.current.holds if hold.name.startswith(prefix)}
    if not entry.current.holds:
        found = {d: (n, v.version) for d, (n, v) in find_masks(registry, prefix, entry.name, cascade.masks).items()}
    places = [(digest, *found.get(digest, (None, None))) for digest in cascade.masks]
    return [{"digest": digest, "name": name, "version": version} for digest, name, version in places]
