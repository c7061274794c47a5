"""/masks: upload, list, read, roll back, delete. Everything is checked before anything is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from service.bodies import read_body, read_json
from service.errors import Rejected
from service.registry.base import DIGEST, Entry, Version, check_name
from service.schemas import MaskInfo, MaskList, SetCurrent, Written
from service.security import Caller, may_change, may_read
from service.work import Server
from smn_core.maskfile import check_fits, from_bytes, max_file_bytes

router = APIRouter(prefix="/masks", tags=["masks"])

Name = Annotated[str, Path(description="[a-z0-9][a-z0-9._-]*, at most 128 characters")]
T = TypeVar("T")
CURRENT = {"required": True, "content": {"application/json": {"schema": SetCurrent.model_json_schema()}}}
VersionNumber = Annotated[int | None, Query(ge=1, description="Default: the current one.")]


@router.put("/{name}", status_code=201, response_model=Written, responses={200: {"model": Written}})
async def upload(
    name: Name,
    request: Request,
    response: Response,
    caller: Annotated[Caller, Depends(may_change)],
    if_match: Annotated[str | None, Header(description='"<digest>": only over this current version.')] = None,
    if_none_match: Annotated[str | None, Header(description="*: only as a new name.")] = None,
) -> dict[str, Any]:
    """Upload a mask file as the new current version of a name: 201, or 200 where it is the current one already."""
    server: Server = request.app.state.server
    check_name(name)
    caller.require_name(name)
    guard, absent = _guards(if_match, if_none_match)
    async with server.working():
        limit = min(server.settings.max_body_bytes, max_file_bytes(server.engine.backbone.layout))
        data = await server.in_time(request, lambda: read_body(request, limit))
        warnings = await asyncio.get_running_loop().run_in_executor(server.decoders, _check, server, data)
        done = await _in_thread(
            server, lambda: server.registry.publish("masks", name, data, if_match=guard, if_absent=absent)
        )
    response.status_code = 201 if done.created else 200
    return _written(name, done.version, warnings)


@router.get("", response_model=MaskList)
async def listing(
    request: Request,
    caller: Annotated[Caller, Depends(may_read)],
    limit: Annotated[int, Query(ge=1, le=1000, description="Names a page.")] = 100,
    after: Annotated[str, Query(max_length=128, description="`next` of the page before.")] = "",
) -> dict[str, Any]:
    """Masks in order of names, a page at a time; a key bound to a prefix sees its own."""
    server: Server = request.app.state.server
    entries = await _in_thread(server, lambda: server.registry.names("masks", limit + 1, caller.after(after)))
    mine = [entry for entry in entries if entry.name.startswith(caller.prefix)]
    page = mine[:limit]
    return {
        "data": [
            {
                "name": e.name,
                "current": {"version": e.current.version, "digest": e.current.digest},
                "versions": len(e.versions),
            }
            for e in page
        ],
        "next": page[-1].name if len(mine) > limit else None,
    }


@router.get("/{name}", response_model=MaskInfo)
async def read(name: Name, request: Request, caller: Annotated[Caller, Depends(may_read)]) -> dict[str, Any]:
    """Versions, the current one's metadata, and its density by tensor."""
    server: Server = request.app.state.server
    entry = _entry(server, caller, name)
    mask = await _in_thread(
        server, lambda: from_bytes(server.registry.blob(entry.current.digest), server.engine.backbone.layout)
    )
    return {
        "name": name,
        "current": {"version": entry.current.version, "digest": entry.current.digest},
        "versions": [vars(version) for version in entry.versions],
        "metadata": {
            **mask.metadata,
            "model": mask.model,
            "fingerprint": mask.fingerprint,
            "preprocess": mask.preprocess,
            "classes": list(mask.head.classes) if mask.head else None,
        },
        "density": mask.densities,
    }


@router.get("/{name}/file", response_class=Response, responses={200: {"content": {"application/octet-stream": {}}}})
async def file(
    name: Name, request: Request, caller: Annotated[Caller, Depends(may_read)], version: VersionNumber = None
) -> Response:
    """The mask file, as it was uploaded."""
    server: Server = request.app.state.server
    caller.require_name(name)
    reference = name if version is None else f"{name}@{version}"
    digest = server.registry.resolve("masks", reference).digest
    etag = f'"{digest}"'
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers={"ETag": etag})
    data = await _in_thread(server, lambda: server.registry.blob(digest))
    return Response(data, media_type="application/octet-stream", headers={"ETag": etag, "X-SMN-Digest": digest})


@router.put("/{name}/current", response_model=Written, openapi_extra={"requestBody": CURRENT})
async def roll(name: Name, request: Request, caller: Annotated[Caller, Depends(may_change)]) -> dict[str, Any]:
    """Roll back, or forward again."""
    server: Server = request.app.state.server
    caller.require_name(name)
    body = await server.in_time(request, lambda: read_json(request, SetCurrent))
    async with server.working():
        version = await _in_thread(server, lambda: server.registry.set_current("masks", name, body.version))
    return _written(name, version, [])


@router.delete("/{name}", status_code=204, response_class=Response)
async def delete(
    name: Name, request: Request, caller: Annotated[Caller, Depends(may_change)], version: VersionNumber = None
) -> None:
    """Delete one version, or without a version the name with all of them."""
    server: Server = request.app.state.server
    check_name(name)
    caller.require_name(name)
    async with server.working():
        await _in_thread(server, lambda: server.registry.delete("masks", name, version))


def _check(server: Server, data: bytes) -> list[str]:
    """Whether the bytes are a mask of this backbone; returns warnings."""
    return check_fits(from_bytes(data, server.engine.backbone.layout), server.engine.backbone)


def _entry(server: Server, caller: Caller, name: str) -> Entry:
    check_name(name)
    caller.require_name(name)
    return server.registry.entry("masks", name)


def _written(name: str, version: Version, warnings: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "version": version.version,
        "digest": version.digest,
        "bytes": version.bytes,
        "warnings": warnings,
    }


def _guards(if_match: str | None, if_none_match: str | None) -> tuple[str | None, bool]:
    """The digest that must be current, and whether the name must be new."""
    if if_none_match is not None and if_none_match.strip() != "*":
        raise Rejected(400, "invalid_guard", "If-None-Match takes * on an upload", "If-None-Match")
    if if_match is None:
        return None, if_none_match is not None
    digest = if_match.strip().strip('"')
    if if_match.strip() != f'"{digest}"' or not DIGEST.fullmatch(digest):
        raise Rejected(400, "invalid_guard", 'If-Match takes one "sha256:..." in quotes', "If-Match")
    return digest, if_none_match is not None


async def _in_thread(server: Server, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(server.clerks, call)
