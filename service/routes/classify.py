"""POST /classify: images in, labels out, by the classifier in the file of a mask or cascade."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service import respond
from service.embedding import Wanted, begun
from service.labels import classify as label
from service.routes.embed import BODY, CascadeQuery, MaskQuery, ModeQuery, reader_of, require_one
from service.schemas import ClassifyAnswer
from service.security import Reader
from service.server import TheServer
from service.spaces import SpaceQuery

router = APIRouter(tags=["classify"])


@router.post("/classify", response_model=ClassifyAnswer, openapi_extra={"requestBody": BODY})
async def classify(
    server: TheServer,
    request: Request,
    caller: Reader,
    mask: MaskQuery = None,
    cascade: CascadeQuery = None,
    mode: ModeQuery = None,
    top: Annotated[int | None, Query(ge=1, description="The most probable classes; none: all of them.")] = None,
    space: SpaceQuery = None,
) -> Response:
    """Label one or more images, sent as to /embed. A mask without a classifier is 409: `smn probe` writes one."""
    require_one(mask, cascade, mode)
    wanted = Wanted(mask, cascade, mode, space=space, labels=True)
    async with begun(server, request, caller):
        found, labels = await label(server, request, caller, reader_of(server, request), wanted, top)
    body = {"object": "list", "model": server.backbone.architecture, "space": found.space, **found.used()}
    answer = respond.as_json({**body, "data": labels, "warnings": found.warnings})
    answer.headers.update(found.headers)
    return answer
