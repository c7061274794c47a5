"""POST /map: where pictures lie beside each other, in the space of a mask.

A map of pictures of the gallery is made in steps, since embedding them may take longer than a request: until all are
embedded the answer is 202, and the same call again goes on where the last one ended.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from jaxtyping import Float32
from numpy import ndarray

from service import embedding
from service.bodies import Images
from service.console import places
from service.embedding import Wanted, begun, in_time, until_gone
from service.errors import Rejected
from service.jsonbody import read_json
from service.registry.base import Kind, parse_reference
from service.routes.embed import CascadeQuery, MaskQuery, ModeQuery, require_one
from service.routes.gallery import the_gallery
from service.schemas import MapAnswer, MapProgress, MapRequest
from service.security import Caller, Reader
from service.server import Server, TheServer
from service.spaces import EXPECTED, SpaceQuery
from smn_core.errors import InvalidImage, NotFound

router = APIRouter(tags=["gallery"])
SLICE_S = 3.0
"""How long one call embeds before it says how far it is."""
A_CHUNK = 16
MAX_WIDTH = 8192
BODY = {"required": True, "content": {"application/json": {"schema": MapRequest.model_json_schema()}}}


@router.post(
    "/map", response_model=MapAnswer, responses={202: {"model": MapProgress}}, openapi_extra={"requestBody": BODY}
)
async def arrange(
    server: TheServer,
    request: Request,
    caller: Reader,
    mask: MaskQuery = None,
    cascade: CascadeQuery = None,
    mode: ModeQuery = None,
    space: SpaceQuery = None,
) -> dict[str, Any] | JSONResponse:
    """Places on a plane, clusters and neighbours of pictures of the gallery through a mask, or of vectors as they are.

    202 tells how many of the pictures are embedded: send the same request again.
    """
    require_one(mask, cascade, mode)
    async with begun(server, request, caller):
        body = await in_time(
            server, request, lambda: read_json(request, MapRequest, server.settings.max_body_bytes, places.MOST_POINTS)
        )
        if body.vectors is not None:
            if body.ids is not None or mask is not None or cascade is not None:
                raise Rejected(400, "vectors_alone", "vectors go without ids, mask and cascade", "vectors")
            kept: list[str] = []
            vectors = await asyncio.to_thread(_vectors_of, body.vectors)
        elif body.ids:
            wanted = replace(_pinned(server, caller, mask, cascade, mode), space=space)
            kept, found = await _embedded(server, request, caller, list(dict.fromkeys(body.ids)), wanted)
            if found is None:
                return JSONResponse(vars(MapProgress(embedded=len(kept), of=len(set(body.ids)))), 202)
            vectors = found
        else:
            raise Rejected(400, "nothing_to_map", "send ids of the gallery's pictures, or vectors", "ids")
        with server.maps.admit(1, caller.who):
            made = await in_time(
                server,
                request,
                lambda: until_gone(request, places.of(vectors, body.clusters, body.neighbours)),
            )
    return {"object": "map", "ids": kept, **made}


def _pinned(server: Server, caller: Caller, mask: str | None, cascade: str | None, mode: str | None) -> Wanted:
    """What the references mean now: an upload in the middle must not mix two spaces in one map."""

    def pin(kind: Kind, reference: str) -> str:
        caller.require_name(parse_reference(reference)[0])
        found = server.registry.resolve(kind, reference)
        return f"{found.name}@{found.digest}"

    return Wanted(
        pin("masks", mask) if mask is not None else None,
        pin("cascades", cascade) if cascade is not None else None,
        mode,
    )


def _seen_as(request: Request, wanted: Wanted) -> Hashable:
    """Under what vectors are kept: with the space that the request expects, so that each expectation is checked."""
    return wanted.mask, wanted.cascade, wanted.mode, wanted.space, request.headers.get(EXPECTED)


async def _embedded(
    server: Server, request: Request, caller: Caller, ids: list[str], wanted: Wanted
) -> tuple[list[str], Float32[ndarray, "n d"] | None]:
    """The pictures that can be read, and their vectors; None instead, while some are still to be embedded."""
    gallery, ends = the_gallery(server), time.perf_counter() + SLICE_S
    space = _seen_as(request, wanted)
    rows: dict[str, Float32[ndarray, "d"] | None] = {}
    for one in ids:
        if gallery.has(one):
            rows[one] = server.seen.get(space, one)
    waiting = [one for one, row in rows.items() if row is None]
    chunk = min(A_CHUNK, server.settings.most_images)
    while waiting:
        if time.perf_counter() > ends:
            return [one for one in rows if one not in set(waiting)], None
        part, waiting = waiting[:chunk], waiting[chunk:]
        rows |= await _embed(server, request, caller, part, wanted)
    kept = {one: row for one, row in rows.items() if row is not None}
    if not kept:
        raise NotFound("the gallery has none of these pictures")
    return list(kept), np.stack(list(kept.values()))


async def _embed(
    server: Server, request: Request, caller: Caller, ids: list[str], wanted: Wanted
) -> dict[str, Float32[ndarray, "d"]]:
    """The vectors of some pictures; those that cannot be read are left out, here and from the gallery."""
    gallery = the_gallery(server)
    files: dict[str, bytes] = {}
    for one in ids:
        with suppress(NotFound):
            files[one] = await gallery.read(gallery.picture(one))
    if not files:
        return {}

    async def read() -> Images:
        return Images(list(files.values()))

    try:
        found = await embedding.embed(server, request, caller, read, wanted)
    except InvalidImage:
        if len(files) == 1:
            gallery.leave_out(*files)
            return {}
        alone: dict[str, Float32[ndarray, "d"]] = {}  # one by one, since one of them spoils the others'
        for one in files:
            alone |= await _embed(server, request, caller, [one], wanted)
        return alone
    space = _seen_as(request, wanted)
    for one, row in zip(files, found.z, strict=True):
        server.seen.put(space, one, row)
    return dict(zip(files, found.z, strict=True))


def _vectors_of(texts: list[str]) -> Float32[ndarray, "n d"]:
    """Vectors as base64 of little-endian float32, as `/v1/embeddings` gives them."""
    rows: list[Float32[ndarray, "d"]] = []
    for number, text in enumerate(texts):
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Rejected(400, "invalid_vector", f"vector {number} is not base64", "vectors") from error
        if not data or len(data) % 4 or len(data) > 4 * MAX_WIDTH or (rows and len(data) != 4 * len(rows[0])):
            said = f"vector {number} is not float32 of one width for all, at most {MAX_WIDTH}"
            raise Rejected(400, "invalid_vector", said, "vectors")
        rows.append(np.frombuffer(data, "<f4"))
    if not rows:
        raise Rejected(400, "nothing_to_map", "there are no vectors", "vectors")
    vectors = np.stack(rows).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise Rejected(400, "invalid_vector", "a vector is not finite", "vectors")
    return vectors
