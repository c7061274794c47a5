"""OpenAI's list of models: the backbone, masks and cascades. Its embeddings are in dialects/openai.py."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from service.registry.base import CASCADE, Kind
from service.routes.dialects.asking import resolve
from service.schemas import OpenAIModel, OpenAIModels
from service.security import Reader
from service.server import TheServer

router = APIRouter(prefix="/v1", tags=["openai"])
MODELS_LISTED = 1000


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
    resolve(model, server, caller)
    return _model(model)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "smn"}
