"""OpenAI's list of models: the backbone, masks and cascades. Its embeddings are in dialects/openai.py."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from service.registry.base import CASCADE, Kind
from service.routes.dialects.asking import resolve
from service.routes.versions import reading
from service.schemas import OpenAIModel, OpenAIModels
from service.security import Caller, Reader
from service.server import Server, TheServer
from smn_core.errors import SMNError

router = APIRouter(prefix="/v1", tags=["openai"])
MODELS_LISTED = 1000
FILES_READ = 32
"""Most files that one list of models reads to name spaces: cascades, and masks with records of before spaces."""


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
    found = resolve(model, server, caller)
    if found is None:
        return _model(model, server.spaces.root)
    kind: Kind = "cascades" if model.startswith(CASCADE) else "masks"
    return _model(model, await reading(server, request, partial(server.spaces.default, kind, found)))


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
