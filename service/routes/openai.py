"""OpenAI's shapes: the official client works unchanged, `model` is a mask reference, `cascade:REF` or the backbone."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from service import respond
from service.bodies import Images, require_count
from service.embedding import Wanted, begun, embed, in_time
from service.imagetext import decode_text
from service.jsonbody import read_json
from service.registry.base import CASCADE, Kind
from service.schemas import OpenAIAnswer, OpenAIModels, OpenAIRequest
from service.security import Reader
from service.server import Server, TheServer

router = APIRouter(prefix="/v1", tags=["openai"])
MODELS_LISTED = 1000


BODY = {"required": True, "content": {"application/json": {"schema": OpenAIRequest.model_json_schema()}}}


@router.post("/embeddings", response_model=OpenAIAnswer, openapi_extra={"requestBody": BODY})
async def embeddings(server: TheServer, request: Request, caller: Reader) -> Response:
    """Embeddings as OpenAI's API gives them; base64 is little-endian float32."""
    limits = server.settings
    async with begun(server, request, caller):
        body = await in_time(
            server, request, lambda: read_json(request, OpenAIRequest, limits.max_body_bytes, limits.most_images)
        )
        texts = [body.input] if isinstance(body.input, str) else body.input
        require_count(len(texts), limits.most_images)

        async def read() -> Images:
            named = [(text, f"input[{i}]") for i, text in enumerate(texts)]
            return Images(await asyncio.to_thread(lambda: [decode_text(*one) for one in named]))

        found = await embed(server, request, caller, read, _wanted(body, server))
    z = respond.shape(found.z, body.dimensions, normalize=False)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": respond.as_base64(row) if body.encoding_format == "base64" else row,
        }
        for index, row in enumerate(z)
    ]
    usage = {"prompt_tokens": len(z), "total_tokens": len(z)}
    answer = respond.as_json({"object": "list", "data": data, "model": body.model, "usage": usage})
    answer.headers["X-SMN-Digest"] = found.digest
    return answer


@router.get("/models", response_model=OpenAIModels)
async def models(server: TheServer, caller: Reader) -> dict[str, Any]:
    """The backbone, every mask and every cascade as models."""
    ids = [server.backbone.architecture]
    kinds: tuple[tuple[Kind, str], ...] = (("masks", ""), ("cascades", CASCADE))
    for kind, before in kinds:
        entries = server.registry.names(kind, MODELS_LISTED, caller.after(""))
        ids += [before + entry.name for entry in entries if entry.name.startswith(caller.prefix)]
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "smn"} for name in ids],
    }


def _wanted(body: OpenAIRequest, server: Server) -> Wanted:
    """What OpenAI's `model` means; a cascade runs in its default mode."""
    if body.model.startswith(CASCADE):
        return Wanted(cascade=body.model.removeprefix(CASCADE), dimensions=body.dimensions)
    mask = None if body.model == server.backbone.architecture else body.model
    return Wanted(mask=mask, dimensions=body.dimensions)
