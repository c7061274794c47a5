"""Cohere's `/v2/embed`, which Bedrock has too: every vector in every kind of numbers that is asked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.errors import Rejected
from service.imagetext import text_input
from service.routes.dialects.asking import URI, Asked, Count, Value, ask, asked_of_values, body_of, read_body
from service.security import Reader
from service.server import TheServer
from service.spaces import SpaceQuery

router = APIRouter(prefix="/v2", tags=["dialects"])
EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class CohereRequest(BaseModel):
    """Images as data URIs, or inputs with a content of one image each. Without a model: the untouched backbone."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "flowers", "images": [URI]}]})

    model: str | None = None
    input_type: str | None = None
    images: list[Value] | None = None
    inputs: list[Value] | None = None
    texts: list[str] | None = None
    embedding_types: Annotated[list[EmbeddingType], Field(max_length=16)] | None = None
    output_dimension: Count = None
    truncate: str | None = None


class CohereEmbeddings(BaseModel):
    """A list of vectors for each type that was asked for."""

    model_config = ConfigDict(populate_by_name=True)

    float_: list[list[float]] | None = Field(None, alias="float")
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class CohereAnswer(BaseModel):
    id: str
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    embeddings: CohereEmbeddings
    texts: list[str]
    meta: dict[str, Any]
    space: str


@router.post("/embed", response_model=CohereAnswer, openapi_extra=body_of(CohereRequest))
async def embed(server: TheServer, request: Request, caller: Reader, space: SpaceQuery = None) -> Response:
    """Embeddings as Cohere's API gives them; base64 is little-endian float32."""

    async def understand() -> Asked:
        body = await read_body(server, request, CohereRequest)
        if body.texts:
            raise text_input("texts")
        if body.images and body.inputs:
            raise Rejected(400, "images_and_inputs", "images and inputs: send one of them", "inputs")
        param = "inputs" if body.inputs else "images"
        kinds = tuple(dict.fromkeys(body.embedding_types or ["float"]))
        return asked_of_values(
            body.inputs or body.images or [], param, body.model, dimensions=body.output_dimension, kinds=kinds
        )

    answer = await ask(server, request, caller, space, understand)
    embeddings = {
        kind: answer.rows(base64=True) if kind == "base64" else answer.rows(kind) for kind in answer.asked.kinds
    }
    return answer.as_json(
        {
            "id": request.state.record.request_id,
            "response_type": "embeddings_by_type",
            "embeddings": embeddings,
            "texts": [],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"images": answer.asked.count}},
            "space": answer.found.space,
        }
    )
