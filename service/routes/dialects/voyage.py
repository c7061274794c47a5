"""Voyage's `/v1/multimodalembeddings`: inputs whose content is one image each."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from service.rounding import Kind
from service.routes.dialects.asking import URI, Asked, Count, Value, ask, asked_of_values, body_of, read_body
from service.schemas import OpenAIEmbedding
from service.security import Reader
from service.server import TheServer
from service.spaces import SpaceQuery

router = APIRouter(prefix="/v1", tags=["dialects"])
INPUT: dict[str, Any] = {"content": [{"type": "image_base64", "image_base64": URI}]}


class VoyageRequest(BaseModel):
    """Inputs, each a content of one image. The encoding has two names: the API's, and the one its client sends."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "flowers", "inputs": [INPUT]}]})

    model: str
    inputs: list[Value]
    input_type: str | None = None
    truncation: bool | None = None
    output_encoding: Literal["base64"] | None = None
    encoding_format: Literal["base64"] | None = None
    output_dtype: Kind | None = None
    output_dimension: Count = None


class VoyageUsage(BaseModel):
    """`image_pixels` are those that the backbone saw; tokens count images, as OpenAI's do here."""

    text_tokens: int
    image_pixels: int
    video_pixels: int
    total_tokens: int


class VoyageAnswer(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    space: str
    usage: VoyageUsage


@router.post("/multimodalembeddings", response_model=VoyageAnswer, openapi_extra=body_of(VoyageRequest))
async def embed(server: TheServer, request: Request, caller: Reader, space: SpaceQuery = None) -> Response:
    """Embeddings as Voyage's API gives them; base64 is little-endian, of the kind of numbers asked for."""
    base64 = False

    async def understand() -> Asked:
        nonlocal base64
        body = await read_body(server, request, VoyageRequest)
        base64 = "base64" in (body.output_encoding, body.encoding_format)
        kinds = (body.output_dtype or "float",)
        return asked_of_values(body.inputs, "inputs", body.model, dimensions=body.output_dimension, kinds=kinds)

    answer = await ask(server, request, caller, space, understand)
    n, (height, width) = len(answer.z), server.reader.input_px
    usage = {"text_tokens": 0, "image_pixels": n * height * width, "video_pixels": 0, "total_tokens": n}
    data = answer.data(answer.asked.kinds[0], base64=base64)
    told = {"object": "list", "data": data, "model": answer.asked.model, "space": answer.found.space}
    return answer.as_json({**told, "usage": usage})
