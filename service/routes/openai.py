"""OpenAI's shapes: the official client works unchanged, `model` is a mask reference, `cascade:REF` or the backbone."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from service import respond
from service.bodies import Images, require_count
from service.embedding import Wanted, begun, embed, in_time
from service.imagetext import decode_text
from service.jsonbody import read_json
from service.registry.base import CASCADE, Kind, parse_reference
from service.schemas import OpenAIAnswer, OpenAIModel, OpenAIModels, OpenAIRequest
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

        found = await embed(server, request, caller, read, _wanted(body.model, server, body.dimensions))
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
        "data": [_model(name) for name in ids],
    }


ModelName = Annotated[str, Path(description="A mask's reference, `cascade:REF`, or the backbone's name for the root.")]


@router.get("/models/{model}", response_model=OpenAIModel)
async def model(model: ModelName, server: TheServer, caller: Reader) -> dict[str, Any]:
    """One of them; any reference that `/v1/embeddings` takes as a model."""
    wanted = _wanted(model, server)
    named: tuple[tuple[Kind, str | None], ...] = (("masks", wanted.mask), ("cascades", wanted.cascade))
    for kind, reference in named:
        if reference is not None:
            caller.require_name(parse_reference(reference)[0])
            server.registry.resolve(kind, reference)
    return _model(model)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "smn"}


def _wanted(model: str, server: Server, dimensions: int | None = None) -> Wanted:
    """What OpenAI's `model` means; a cascade runs in its default mode."""
    if model.startswith(CASCADE):
        return Wanted(cascade=model.removeprefix(CASCADE), dimensions=dimensions)
    return Wanted(mask=None if model == server.backbone.architecture else model, dimensions=dimensions)
