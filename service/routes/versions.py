"""What masks and cascades have in common: list, file, roll back, delete, aliases; and the parts of an upload."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response

from service.embedding import deadline_s, in_time
from service.errors import Rejected
from service.jsonbody import read_json
from service.record import Record
from service.registry.base import (
    Entry,
    Kind,
    Published,
    Registry,
    StillNeeded,
    Version,
    blob_of_version,
    check_alias,
)
from service.registry.within import within
from service.schemas import AliasSet, MaskList, SetCurrent, Written
from service.security import Caller, Changer, OwnName, OwnNameToChange, Reader
from service.server import Server, TheServer
from smn_core.tensorfile import DIGEST

VersionNumber = Annotated[int | None, Query(ge=1, description="Default: the current one.")]
Alias = Annotated[str, Path(description="[a-z][a-z0-9-]*, at most 32 characters; not sha256, nor v with digits")]
CURRENT = {"required": True, "content": {"application/json": {"schema": SetCurrent.model_json_schema()}}}
FILE_BODY = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
"""How OpenAPI describes an uploaded file: its page then has a button to choose one."""
T = TypeVar("T")
NAMES_A_READ = 1000


def add_common_routes(router: APIRouter, kind: Kind) -> None:
    """List, file, roll back, delete and aliases, of masks or of cascades."""

    @router.get("", response_model=MaskList)
    async def listing(
        server: TheServer,
        request: Request,
        caller: Reader,
        limit: Annotated[int, Query(ge=1, le=1000, description="Names a page.")] = 100,
        after: Annotated[str, Query(max_length=128, description="`next` of the page before.")] = "",
    ) -> dict[str, Any]:
        """In order of names, a page at a time; a key bound to a prefix sees its own."""
        entries = await reading(server, request, lambda: server.registry.names(kind, limit + 1, caller.after(after)))
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
        data = await reading(server, request, lambda: blob_of_version(server.registry, digest))
        return Response(data, media_type="application/octet-stream", headers={"ETag": etag, "X-SMN-Digest": digest})

    @router.put("/{name}/current", response_model=Written, openapi_extra={"requestBody": CURRENT})
    async def roll(name: OwnNameToChange, server: TheServer, request: Request) -> dict[str, Any]:
        """Roll back, or forward again. `warnings` tell where vectors that were made before are in another space."""
        async with server.working():
            body = await in_time(server, request, lambda: read_json(request, SetCurrent))

            def change() -> tuple[Version, list[str]]:
                warnings = server.spaces.warn_of_move(kind, name, body.version)
                return server.registry.set_current(kind, name, body.version), warnings

            version, warnings = await changing(server, request, change)
        return written(name, version, warnings)

    @router.delete("/{name}", status_code=204, response_class=Response)
    async def delete(
        name: OwnNameToChange, server: TheServer, request: Request, caller: Changer, version: VersionNumber = None
    ) -> None:
        """Delete one version, or without a version the name with all of them."""
        async with server.working():
            try:
                await changing(server, request, lambda: server.registry.delete(kind, name, version))
            except StillNeeded as error:  # it tells of no cascade that the caller may not see
                raise StillNeeded(name, error.users, caller.prefix) from error

    @router.put(
        "/{name}/aliases/{alias}",
        status_code=201,
        response_model=AliasSet,
        responses={200: {"model": AliasSet}},
        openapi_extra={"requestBody": CURRENT},
    )
    async def set_alias(
        name: OwnNameToChange, alias: Alias, server: TheServer, request: Request, response: Response
    ) -> dict[str, Any]:
        """Let name@alias mean a version: 201 for a new alias, 200 where it was there."""
        check_alias(alias)
        async with server.working():
            body = await in_time(server, request, lambda: read_json(request, SetCurrent))

            def change() -> tuple[bool, list[str]]:
                warnings = server.spaces.warn_of_move(kind, name, body.version, alias)
                return server.registry.set_alias(kind, name, alias, body.version), warnings

            new, warnings = await changing(server, request, change)
        response.status_code = 201 if new else 200
        return {"name": name, "alias": alias, "version": body.version, "warnings": warnings}

    @router.delete("/{name}/aliases/{alias}", status_code=204, response_class=Response)
    async def delete_alias(name: OwnNameToChange, alias: Alias, server: TheServer, request: Request) -> None:
        """Forget an alias; the version that it meant stays."""
        check_alias(alias)
        async with server.working():
            await changing(server, request, lambda: server.registry.delete_alias(kind, name, alias))


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


def version_table(version: Version, prefix: str = "") -> dict[str, Any]:
    """One version, as the answer about its name lists it; its parent without a name where a key may not see that."""
    shown = ("version", "digest", "bytes", "uploaded", "vectors")
    found = {key: getattr(version, key) for key in shown} | {"parent": None}
    if version.parent is not None:
        held = next((hold for hold in version.holds if hold.name.startswith(prefix)), None)
        found["parent"] = {
            "digest": version.parent,
            "name": held.name if held is not None else None,
            "version": held.version if held is not None else None,
        }
    return found


def notes_of(version: Version) -> dict[str, Any]:
    """What people said of a version; nothing where somebody else wrote a text into the record that is no JSON."""
    try:
        found = json.loads(version.notes or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def reading(server: Server, request: Request, call: Callable[[], T]) -> T:
    """Read the registry off the event loop, until the request's deadline."""
    return await _in_thread(server, request, server.clerks, call)


async def changing(server: Server, request: Request, call: Callable[[], T]) -> T:
    """Change the registry likewise, on threads that no reader waits for."""
    return await _in_thread(server, request, server.scribes, call)


async def _in_thread(server: Server, request: Request, threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    record: Record = request.state.record
    ends = record.began + deadline_s(server, request)

    def in_thread() -> T:
        with within(ends - time.perf_counter()):  # the wait for a thread counts
            return call()

    return await in_time(server, request, lambda: asyncio.get_running_loop().run_in_executor(threads, in_thread))


def find_masks(registry: Registry, prefix: str, name: str, digests: Sequence[str]) -> dict[str, tuple[str, Version]]:
    """A name and its newest version for every digest that is there: a name that begins `<name>.`, else the first."""
    wanted, found = set(digests), dict[str, tuple[str, Version]]()
    for entry in _entries(registry, prefix):
        for version in entry.versions:
            if version.digest in wanted:
                known = found.get(version.digest)
                own = entry.name.startswith(f"{name}.")
                if known is None or known[0] == entry.name or (own and not known[0].startswith(f"{name}.")):
                    found[version.digest] = entry.name, version
    return found


def _entries(registry: Registry, prefix: str) -> Iterator[Entry]:
    after = Caller(admin=False, prefix=prefix).after("")
    while page := registry.names("masks", NAMES_A_READ, after):
        for entry in page:
            if not entry.name.startswith(prefix):
                return
            yield entry
        after = page[-1].name
