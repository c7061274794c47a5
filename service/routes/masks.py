"""/masks: upload and read; the rest is in versions.py. Everything is checked before anything is stored."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from service.embedding import in_time
from service.errors import Rejected
from service.reading import read_body
from service.registry.base import Hold, Published, blob_of_version
from service.routes.versions import (
    FILE_BODY,
    add_common_routes,
    answer,
    changing,
    find_masks,
    guards,
    notes_of,
    reading,
    version_table,
)
from service.schemas import MaskInfo, Written
from service.security import Changer, OwnName, OwnNameToChange, Reader
from service.server import Server, TheServer
from smn_core.errors import MissingMasks
from smn_core.mask import TaskMask
from smn_core.maskfile import check_fits, max_file_bytes, parse_mask
from smn_core.parents import parent_of
from smn_core.tensorfile import DIGEST
from smn_core.vectors import vectors_of_mask

router = APIRouter(prefix="/masks", tags=["masks"])
add_common_routes(router, "masks")


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
    """Upload a mask file as the new current version of a name: 201, or 200 where it is the current one already.

    A mask that is coded against a parent: 422 where no name that the caller may see has that file.
    """
    if name == server.backbone.architecture:
        raise Rejected(
            400, "reserved_name", f"{name} is the backbone's own name in /v1/embeddings: choose another", "name"
        )
    guard, absent = guards(if_match, if_none_match)
    async with server.working():
        limit = min(server.settings.max_body_bytes, max_file_bytes(server.backbone.layout))
        data = await in_time(server, request, lambda: read_body(request, limit))
        hold, parent = await reading(server, request, lambda: _find_parent(server, caller.prefix, name, data))
        mask, warnings = await asyncio.get_running_loop().run_in_executor(server.decoders, _check, server, data, parent)
        mask = await in_time(server, request, lambda: server.embedder.decode(mask))

        def publish() -> tuple[Published, list[str]]:
            vectors, before = vectors_of_mask(mask), server.spaces.current("masks", name)
            moved = server.spaces.warn("masks", name, before, server.spaces.name(vectors))
            published = server.registry.publish(
                "masks",
                name,
                data,
                holds=[hold] if hold is not None else [],
                vectors=vectors,
                parent=mask.parent,
                if_match=guard,
                if_absent=absent,
            )
            return published, moved

        done, moved = await changing(server, request, publish)
    return answer(name, done, [*warnings, *moved], response)


@router.get("/{name}", response_model=MaskInfo)
async def read(name: OwnName, server: TheServer, request: Request, caller: Reader) -> dict[str, Any]:
    """Versions, the current one's metadata, and its density by tensor."""
    entry = server.registry.entry("masks", name)
    mask = await reading(
        server,
        request,
        lambda: parse_mask(
            blob_of_version(server.registry, entry.current.digest),
            server.backbone.layout,
            lambda digest: blob_of_version(server.registry, digest),
        ),
    )
    mask = await in_time(server, request, lambda: server.embedder.decode(mask))
    vectors = entry.current.vectors or vectors_of_mask(mask)
    return {
        "name": name,
        "current": {"version": entry.current.version, "digest": entry.current.digest},
        "versions": [version_table(version, caller.prefix) for version in entry.versions],
        "aliases": dict(entry.aliases),
        "notes": {str(version.version): notes_of(version) for version in entry.versions if version.notes},
        "vectors": vectors,
        "space": server.spaces.name(vectors),
        "metadata": {
            **mask.metadata,
            "model": mask.model,
            "fingerprint": mask.fingerprint,
            "preprocess": mask.preprocess,
            "affine": mask.affine.describe() if mask.affine else None,
            "classes": list(mask.head.classes) if mask.head else None,
        },
        "density": mask.densities,
        "warnings": check_fits(mask, server.backbone),
    }


def _find_parent(server: Server, prefix: str, name: str, data: bytes) -> tuple[Hold | None, bytes | None]:
    """The version that an upload is coded against, among names that begin with a prefix, and its file; if there is one.

    Raises:
        MissingMasks: the caller does not have it, in the registry or not.
    """
    digest = parent_of(data)
    if digest is None or not DIGEST.fullmatch(digest):  # what is none, parsing refuses
        return None, None
    found = find_masks(server.registry, prefix, name, [digest]).get(digest)
    if found is None:
        whose = "among yours" if prefix else "in the registry"
        raise MissingMasks(f"mask {name} is coded against {digest}, which is not {whose}: upload that first")
    return Hold(digest, found[0], found[1].version), blob_of_version(server.registry, digest)


def _check(server: Server, data: bytes, parent: bytes | None) -> tuple[TaskMask, list[str]]:
    """The mask that the bytes are, if it is this backbone's, and warnings."""
    mask = parse_mask(data, server.backbone.layout, lambda _: parent)
    return mask, check_fits(mask, server.backbone)
