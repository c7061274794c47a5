"""Azure AI inference's `/images/embeddings`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from service.routes.dialects.asking import URI, Asked, Count, Value, ask, asked_of_values, body_of, read_body
from service.schemas import OpenAIAnswer
from service.security import Reader
from service.server import TheServer
from service.spaces import SpaceQuery

router = APIRouter(prefix="/images", tags=["dialects"])


class AzureRequest(BaseModel):
    """Images as data URIs under `image`. Without a model: the untouched backbone."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "flowers", "input": [{"image": URI}]}]})

    input: list[Value]
    model: str | None = None
    encoding_format: Literal["float", "base64", "int8", "uint8", "binary", "ubinary"] | None = None
    dimensions: Count = None
    input_type: str | None = None


class AzureAnswer(OpenAIAnswer):
    id: str


@router.post("/embeddings", response_model=AzureAnswer, openapi_extra=body_of(AzureRequest))
async def embed(
    server: TheServer,
    request: Request,
    caller: Reader,
    space: SpaceQuery = None,
    _: Annotated[str | None, Query(alias="api-version", description="Whatever the client sends.")] = None,
) -> Response:
    """Embeddings as Azure AI inference gives them; base64 is little-endian float32."""
    base64 = False

    async def understand() -> Asked:
        nonlocal base64
        body = await read_body(server, request, AzureRequest)
        base64 = body.encoding_format == "base64"
        kind = "float" if base64 else body.encoding_format or "float"
        return asked_of_values(body.input, "input", body.model, dimensions=body.dimensions, kinds=(kind,))

    answer = await ask(server, request, caller, space, understand)
    return answer.as_json(
        {
            "id": request.state.record.request_id,
            "object": "list",
            "data": answer.data(answer.asked.kinds[0], base64=base64),
            "model": answer.asked.model or server.backbone.architecture,
            "space": answer.found.space,
            "usage": answer.usage(),
        }
    )
