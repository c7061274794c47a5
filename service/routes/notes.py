"""PUT /masks/{name}/notes: what people say of a version, beside its file, which never changes."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request

from service.embedding import in_time
from service.errors import Rejected
from service.jsonbody import MAX_SMALL_BYTES, parse_json
from service.reading import media_type, read_buffer
from service.routes.versions import VersionNumber, changing
from service.schemas import NOTES_EXAMPLE, Noted
from service.security import OwnNameToChange
from service.server import TheServer

router = APIRouter(prefix="/masks", tags=["masks"])
BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"type": "object", "examples": [NOTES_EXAMPLE]}}},
}


@router.put("/{name}/notes", response_model=Noted, openapi_extra={"requestBody": BODY})
async def put_notes(
    name: OwnNameToChange, server: TheServer, request: Request, version: VersionNumber = None
) -> dict[str, Any]:
    """Keep a JSON object of up to 64 KiB beside a version, in place of what was there; `{}` removes it."""
    async with server.working():
        notes = await in_time(server, request, lambda: _read(request))
        number = version if version is not None else server.registry.entry("masks", name).current.version
        text = orjson.dumps(notes).decode() if notes else None
        await changing(server, request, lambda: server.registry.set_notes("masks", name, number, text))
    return {"name": name, "version": number, "notes": notes}


async def _read(request: Request) -> dict[str, Any]:
    if media_type(request) != "application/json":
        kind = media_type(request) or "missing"
        raise Rejected(415, "unsupported_type", f"content type {kind}: send application/json", "Content-Type")
    body = await read_buffer(request, MAX_SMALL_BYTES)
    return await asyncio.to_thread(parse_json, body)
