"""What masks and cascades have in common: list, file, roll back, delete; and the parts of an upload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response

from service.embedding import in_time
from service.errors import Rejected
from service.jsonbody import read_json
from service.registry.base import DIGEST, Kind, Published, Version, blob_of_version
from service.schemas import MaskList, SetCurrent, Written
from service.security import OwnName, OwnNameToChange, Reader
from service.server import Server, TheServer

VersionNumber = Annotated[int | None, Query(ge=1, description="Default: the current one.")]
CURRENT = {"required": True, "content": {"application/json": {"schema": SetCurrent.model_json_schema()}}}
T = TypeVar("T")


def add_common_routes(router: APIRouter, kind: Kind) -> None:
    """List, file, roll back and delete, of masks or of cascades."""

    @router.get("", response_model=MaskList)
    async def listing(
        server: TheServer,
        caller: Reader,
        limit: Annotated[int, Query(ge=1, le=1000, description="Names a page.")] = 100,
        after: Annotated[str, Query(max_length=128, description="`next` of the page before.")] = "",
    ) -> dict[str, Any]:
        """In order of names, a page at a time; a key bound to a prefix sees its own."""
        entries = await in_thread(server, lambda: server.registry.names(kind, limit + 1, caller.after(after)))
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

    @router.get("/{name}/file", response_class=Response, responses={200: {"content": {"application/octet-stream": {}}}})
    async def file(name: OwnName, server: TheServer, request: Request, version: VersionNumber = None) -> Response:
        """The file, as it was uploaded."""
        reference = name if version is None else f"{name}@{version}"
        digest = server.registry.resolve(kind, reference).digest
        etag = f'"{digest}"'
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if etag in known or "*" in known:
            return Response(status_code=304, headers={"ETag": etag})
        data = await in_thread(server, lambda: blob_of_version(server.registry, digest))
        return Response(data, media_type="application/octet-stream", headers={"ETag": etag, "X-SMN-Digest": digest})

    @router.put("/{name}/current", response_model=Written, openapi_extra={"requestBody": CURRENT})
    async def roll(name: OwnNameToChange, server: TheServer, request: Request) -> dict[str, Any]:
        """Roll back, or forward again."""
        async with server.working():
            body = await in_time(server, request, lambda: read_json(request, SetCurrent))
            version = await in_thread(server, lambda: server.registry.set_current(kind, name, body.version))
        return written(name, version, [])

    @router.delete("/{name}", status_code=204, response_class=Response)
    async def delete(name: OwnNameToChange, server: TheServer, version: VersionNumber = None) -> None:
        """Delete one version, or without a version the name with all of them."""
        async with server.working():
            await in_thread(server, lambda: server.registry.delete(kind, name, version))


def answer(name: str, done: Published, warnings: list[str], response: Response) -> dict[str, Any]:
    """What an upload answers: 201, or 200 where nothing changed."""
    response.status_code = 201 if done.created else 200
    return written(name, done.version, warnings)


def written(name: str, version: Version, warnings: list[str]) -> dict[str, Any]:
    """What an upload or a rollback made current."""
    return {
        "name": name,
        "version": version.version,
        "digest": version.digest,
        "bytes": version.bytes,
        "warnings": warnings,
    }


def guards(if_match: str | None, if_none_match: str | None) -> tuple[str | None, bool]:
    """The digest that must be current, and whether the name must be new."""
    if if_none_match is not None and if_none_match.strip() != "*":
        raise Rejected(400, "invalid_guard", "If-None-Match takes * on an upload", "If-None-Match")
    if if_match is None:
        return None, if_none_match is not None
    digest = if_match.strip().strip('"')
    if if_match.strip() != f'"{digest}"' or not DIGEST.fullmatch(digest):
        raise Rejected(400, "invalid_guard", 'If-Match takes one "sha256:..." in quotes', "If-Match")
    return digest, if_none_match is not None


async def in_thread(server: Server, call: Callable[[], T]) -> T:
    """Run what may wait for the registry off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(server.clerks, call)
