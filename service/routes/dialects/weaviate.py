"""The contract of Weaviate's inference modules, with what they are to embed through in the path.

img2vec-neural asks `/vectors` with an id and an image, multi2vec-clip `/vectorize` with lists; both answer both.
Weaviate sends no content type and no key.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict

from service.bodies import Images
from service.errors import Rejected
from service.imagetext import decode_unless_text, text_input
from service.routes.dialects.asking import URI, Asked, ask, body_of, read_body, resolve, width_of
from service.routes.status import readyz
from service.security import Reader
from service.server import TheServer
from service.spaces import SpaceQuery

router = APIRouter(prefix="/weaviate/{ref}", tags=["dialects"])
Ref = Annotated[str, Path(description="A mask's reference, `cascade:REF`, or the backbone's name for the root.")]


class WeaviateRequest(BaseModel):
    """An image with an id, or images; in base64 or as data URIs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "1", "image": URI}, {"images": [URI]}]})

    id: str | None = None
    image: str | None = None
    images: list[str] | None = None
    texts: list[str] | None = None


class WeaviateAnswer(BaseModel):
    """`vector` and `dim` of one image, or `imageVectors` of a list."""

    id: str | None = None
    vector: list[float] | None = None
    dim: int | None = None
    textVectors: list[list[float]] | None = None
    imageVectors: list[list[float]] | None = None
    space: str


@router.post("/vectorize", response_model=WeaviateAnswer, openapi_extra=body_of(WeaviateRequest))
async def vectorize(
    ref: Ref, server: TheServer, request: Request, caller: Reader, space: SpaceQuery = None
) -> Response:
    """Vectors as Weaviate's modules read them."""
    one, name = False, None

    async def understand() -> Asked:
        nonlocal one, name
        body = await read_body(server, request, WeaviateRequest, or_no_type=True)
        if body.texts:
            raise text_input("texts")
        one, name = body.image is not None, body.id
        if one and body.images:
            raise Rejected(400, "image_and_images", "image and images: send one of them", "images")
        texts = [(body.image, "image")] if one else [(text, f"images[{i}]") for i, text in enumerate(body.images or [])]
        return Asked(ref, len(texts), lambda: Images([decode_unless_text(*text) for text in texts]))

    answer = await ask(server, request, caller, space, understand)
    if one:
        return answer.as_json(
            {"id": name, "vector": answer.z[0], "dim": answer.z.shape[1], "space": answer.found.space}
        )
    return answer.as_json({"textVectors": [], "imageVectors": answer.z, "space": answer.found.space})


@router.post("/vectors", response_model=WeaviateAnswer, openapi_extra=body_of(WeaviateRequest))
async def vectors(ref: Ref, server: TheServer, request: Request, caller: Reader, space: SpaceQuery = None) -> Response:
    """The same under the name that img2vec-neural asks for."""
    return await vectorize(ref, server, request, caller, space)


@router.get("/meta")
async def meta(ref: Ref, server: TheServer, caller: Reader) -> dict[str, Any]:
    """What is embedded through: the version that the reference means now."""
    found = resolve(ref, server, caller)
    used = vars(found) if found is not None else None
    return {"model": server.backbone.architecture, "used": used, "dim": await width_of(ref, server, found)}


@router.get("/.well-known/live", status_code=204, response_class=Response)
async def live(ref: Ref) -> Response:  # noqa: ARG001  # it is in the path
    """The process answers."""
    return Response(status_code=204)


@router.get("/.well-known/ready", status_code=204, response_class=Response)
async def ready(ref: Ref, server: TheServer) -> Response:  # noqa: ARG001  # without a key it tells of no name
    """Whether to send work here; else 503 with reasons."""
    found = await readyz(server)
    return Response(status_code=204) if found.status_code == 200 else found
