"""OpenAI's `/v1/embeddings`, with the words that Jina, SGLang and vLLM have added to it.

The official client works unchanged: `model` is a mask's reference, `cascade:REF`, or the backbone's name for the root.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.bodies import Images
from service.errors import Rejected
from service.imagevalue import decode_conversation
from service.routes.dialects.asking import (
    URI,
    Asked,
    Count,
    Value,
    as_list,
    ask,
    asked_of_values,
    body_of,
    read_body,
)
from service.schemas import OpenAIAnswer
from service.security import Reader
from service.server import TheServer
from service.spaces import SpaceQuery

router = APIRouter(prefix="/v1", tags=["dialects"])
Encoding = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
MESSAGES: list[Any] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}]}]


class OpenAIRequest(BaseModel):
    """`input` is one image or a list, each a text or an object; or `messages` are a conversation with one image.

    `embedding_type` (Jina) and `encoding_format` say the same; `normalized` (Jina) gives unit length, after the cut.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "flowers", "input": [URI]},
                {"model": "flowers", "input": [{"image": URI}], "normalized": True, "embedding_type": "binary"},
                {"model": "flowers", "messages": MESSAGES},
            ]
        }
    )

    model: str
    input: Value = None
    messages: list[Value] | None = None
    encoding_format: Encoding | None = None
    embedding_type: Encoding | Annotated[list[Encoding], Field(min_length=1, max_length=1)] | None = None
    normalized: bool = False
    dimensions: Count = None
    user: str | None = None

    @property
    def encoding(self) -> Encoding:
        """What numbers the vectors are to have.

        Raises:
            Rejected: 400, two that differ.
        """
        jina = self.embedding_type[0] if isinstance(self.embedding_type, list) else self.embedding_type
        if jina and self.encoding_format and jina != self.encoding_format:
            said = f"embedding_type {jina} and encoding_format {self.encoding_format}: send one of them"
            raise Rejected(400, "two_encodings", said, "embedding_type")
        return jina or self.encoding_format or "float"


@router.post("/embeddings", response_model=OpenAIAnswer, openapi_extra=body_of(OpenAIRequest))
async def embeddings(server: TheServer, request: Request, caller: Reader, space: SpaceQuery = None) -> Response:
    """Embeddings as OpenAI's API gives them; base64 is little-endian float32."""
    base64 = False

    async def understand() -> Asked:
        nonlocal base64
        body = await read_body(server, request, OpenAIRequest)
        base64 = body.encoding == "base64"
        shape: dict[str, Any] = {
            "dimensions": body.dimensions,
            "normalize": body.normalized,
            "kinds": ("float" if base64 else body.encoding,),
        }
        if body.messages is not None and body.input is not None:
            raise Rejected(400, "input_and_messages", "input and messages: send one of them", "messages")
        if body.messages is not None:
            messages = body.messages
            return Asked(body.model, 1, lambda: Images([decode_conversation(messages, "messages")]), **shape)
        return asked_of_values(as_list(body.input, "input"), "input", body.model, **shape)

    answer = await ask(server, request, caller, space, understand)
    data = answer.data(answer.asked.kinds[0], base64=base64)
    told = {"object": "list", "data": data, "model": answer.asked.model, "space": answer.found.space}
    return answer.as_json({**told, "usage": answer.usage()})
