"""OpenAI's shapes: the official client works unchanged, `model` is a mask reference, `cascade:REF` or the backbone."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from service import respond
from service.bodies import Images, require_count
from service.embedding import Wanted, begun, embed, in_time
from service.imagetext import decode_text
from service.jsonbody import read_json
from service.registry.base import CASCADE, Kind, parse_reference
from service.routes.versions import reading
from service.schemas import OpenAIAnswer, OpenAIModel, OpenAIModels, OpenAIRequest
from service.security import Caller, Reader
from service.server import Server, TheServer
from service.spaces import SpaceQuery
from smn_core.errors import SMNError

router = APIRouter(prefix="/v1", tags=["openai"])
MODELS_LISTED = 1000
FILES_READ = 32
"""Most files that one list of models reads to name spaces: cascades, and masks with records of before spaces."""


BODY = {"required": True, "content": {"application/json": {"schema": OpenAIRequest.model_json_schema()}}}


@router.post("/embeddings", response_model=OpenAIAnswer, openapi_extra={"requestBody": BODY})
async def embeddings(server: TheServer, request: Request, caller: Reader, space: SpaceQuery = None) -> Response:
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

        wanted = replace(_wanted(body.model, server, body.dimensions), space=space)
        found = await embed(server, request, caller, read, wanted)
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
    told = {"object": "list", "data": data, "model": body.model, "space": found.space, "usage": usage}
    answer = respond.as_json(told)
    answer.headers.update(found.headers)
    return answer


@router.get("/models", response_model=OpenAIModels)
async def models(server: TheServer, request: Request, caller: Reader) -> dict[str, Any]:
    """The backbone, every mask and every cascade as models, each with the space of its vectors in their default shape.

    `space` is null where only a file tells it, and a list has read enough of them: the next list reads others.
    """
    return {"object": "list", "data": await reading(server, request, lambda: _list(server, caller))}


ModelName = Annotated[str, Path(description="A mask's reference, `cascade:REF`, or the backbone's name for the root.")]


@router.get("/models/{model}", response_model=OpenAIModel)
async def model(model: ModelName, server: TheServer, request: Request, caller: Reader) -> dict[str, Any]:
    """One of them; any reference that `/v1/embeddings` takes as a model."""
    wanted = _wanted(model, server)
    named: tuple[tuple[Kind, str | None], ...] = (("masks", wanted.mask), ("cascades", wanted.cascade))
    for kind, reference in named:
        if reference is not None:
            caller.require_name(parse_reference(reference)[0])
            found = server.registry.resolve(kind, reference)
            return _model(model, await reading(server, request, partial(server.spaces.default, kind, found)))
    return _model(model, server.spaces.root)


def _list(server: Server, caller: Caller) -> list[dict[str, Any]]:
    found, left = [_model(server.backbone.architecture, server.spaces.root)], FILES_READ
    kinds: tuple[tuple[Kind, str], ...] = (("masks", ""), ("cascades", CASCADE))
    for kind, before in kinds:
        for entry in server.registry.names(kind, MODELS_LISTED, caller.after("")):
            if not entry.name.startswith(caller.prefix):
                continue
            space = server.spaces.default_if_known(kind, entry.current)
            if space is None and left > 0:
                left -= 1
                with suppress(SMNError):  # a file that cannot be read costs the list no more than its space
                    space = server.spaces.default(kind, entry.current)
            found.append(_model(before + entry.name, space))
    return found


def _model(name: str, space: str | None) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "smn", "space": space}


def _wanted(model: str, server: Server, dimensions: int | None = None) -> Wanted:
    """What OpenAI's `model` means; a cascade runs in its default mode."""
    if model.startswith(CASCADE):
        return Wanted(cascade=model.removeprefix(CASCADE), dimensions=dimensions)
    return Wanted(mask=None if model == server.backbone.architecture else model, dimensions=dimensions)
