"""POST /embed: images in, embeddings out, through the mask or cascade that the request names."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from service import embedding, respond
from service.bodies import Images, read_images
from service.embedding import Embedding, Wanted
from service.errors import Rejected
from service.schemas import EmbedAnswer, EmbedJson
from service.security import Reader
from service.server import Server, TheServer
from service.spaces import SpaceQuery
from smn_core.shaping import shape

router = APIRouter(tags=["embed"])

BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                "required": ["image"],
            }
        },
        "application/json": {"schema": EmbedJson.model_json_schema()},
        respond.NPY: {"schema": {"type": "string", "format": "binary"}},
    },
}

MaskQuery = Annotated[
    str | None, Query(description="name, name@3, name@alias or name@sha256:...; none: the untouched backbone")
]
CascadeQuery = Annotated[str | None, Query(description="A cascade, instead of a mask.")]
ModeQuery = Annotated[
    Literal["unconditional", "conditional"] | None, Query(description="Of the cascade; none: its default.")
]


@router.post(
    "/embed",
    response_model=EmbedAnswer,
    openapi_extra={"requestBody": BODY},
    responses={200: {"content": {respond.NPY: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def embed(
    server: TheServer,
    request: Request,
    caller: Reader,
    mask: MaskQuery = None,
    cascade: CascadeQuery = None,
    mode: ModeQuery = None,
    dimensions: Annotated[int | None, Query(ge=1, description="Keep the first components.")] = None,
    normalize: Annotated[bool, Query(description="Unit length, after the cut.")] = False,
    space: SpaceQuery = None,
) -> Response:
    """Embed one or more images: raw bytes, multipart, JSON with base64, or an `.npy` of normalised inputs."""
    require_one(mask, cascade, mode)
    wanted = Wanted(mask, cascade, mode, dimensions, normalize=normalize, space=space)
    read = reader_of(server, request)
    async with embedding.begun(server, request, caller):
        found = await embedding.embed(server, request, caller, read, wanted)
    return _answer(request, server, found, dimensions, normalize=normalize)


def require_one(mask: str | None, cascade: str | None, mode: str | None) -> None:
    """Raise 400 for a mask together with a cascade, and for a mode without one."""
    if mask is not None and cascade is not None:
        raise Rejected(400, "mask_and_cascade", "mask and cascade: send one of them", "cascade")
    if mode is not None and cascade is None:
        raise Rejected(400, "mode_without_cascade", "mode is for a cascade", "mode")


def reader_of(server: Server, request: Request) -> Callable[[], Awaitable[Images]]:
    """What reads the images out of the request's body, whichever of the four forms it has."""
    limits = server.settings

    async def read() -> Images:
        return await read_images(request, limits.max_body_bytes, limits.most_images)

    return read


def _answer(request: Request, server: Server, found: Embedding, dimensions: int | None, *, normalize: bool) -> Response:
    z = shape(found.z, dimensions, normalize=normalize)
    if wants_npy(request):
        answer = respond.as_npy(z)
        if found.warnings:  # repr: what a mask's file says may have line breaks
            answer.headers["X-SMN-Warnings"] = ascii("; ".join(found.warnings))[1:-1]
    else:
        body: dict[str, Any] = {
            "model": server.backbone.architecture,
            "space": found.space,
            **found.used(),
            "dimensions": z.shape[1],
            "embeddings": z,
            "warnings": found.warnings,
        }
        answer = respond.as_json(body)
    answer.headers.update(found.headers)
    return answer


def wants_npy(request: Request) -> bool:
    """Whether the client's Accept header rates `application/x-npy` at least as high as JSON, and not 0."""
    rated = {}
    for part in request.headers.get("accept", "").split(","):
        kind, _, parameters = part.partition(";")
        weight = re.search(r"(?:^|;)\s*q=([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", parameters)
        rated[kind.strip().lower()] = float(weight[1]) if weight else 1.0
    npy = rated.get(respond.NPY, 0.0)
    return npy > 0 and npy >= max(rated.get(kind, 0.0) for kind in ("application/json", "application/*"))
