"""What every dialect does with a body that it has read: find the images, embed them, shape the vectors.

A dialect says in its own words what is asked for. The path, its bounds and its vectors are `/embed`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from fastapi import Request, Response
from jaxtyping import Float32
from numpy import ndarray
from pydantic import BaseModel, Field, WithJsonSchema

from service import respond
from service.bodies import Images, require_count
from service.embedding import Embedding, Wanted, begun, embed, in_time
from service.errors import Rejected
from service.imagevalue import decode_values
from service.jsonbody import read_json
from service.registry.base import CASCADE, Resolved, parse_reference
from service.rounding import as_base64, round_to
from service.security import Caller
from service.server import Server
from smn_core.shaping import shape

Model = TypeVar("Model", bound=BaseModel)
FLOATS = ("float", "base64")
URI = "data:image/png;base64,iVBORw0KGgo..."
PART = {
    "type": "object",
    "properties": {
        "image": {"type": "string"},
        "image_url": {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"url": {"type": "string"}}}]},
        "image_base64": {"type": "string"},
        "content": {"type": "array", "items": {"type": "object"}},
    },
}
Value = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, PART]})]
"""One image as some client writes it. `imagevalue.py` checks it, with one clear error and not one for each branch."""
Count = Annotated[int | None, Field(None, ge=1, strict=True)]


@dataclass(frozen=True)
class Asked:
    """What a body asks for.

    Args:
        model: as OpenAI's; None: the untouched backbone.
        count: images, before they are read.
        read: reads them, in a worker thread.
        kinds: of numbers that the answer is to have.
    """

    model: str | None
    count: int
    read: Callable[[], Images]
    dimensions: int | None = None
    normalize: bool = False
    kinds: Sequence[str] = ("float",)

    @property
    def kind(self) -> str | None:
        """Of all numbers of the answer; None where they are floats, or there are several kinds."""
        return self.kinds[0] if len(self.kinds) == 1 and self.kinds[0] not in FLOATS else None


@dataclass(frozen=True)
class Answer:
    """Vectors as they were asked for, and what they went through."""

    asked: Asked
    z: Float32[ndarray, "n d"]
    found: Embedding

    def rows(self, kind: str = "float", *, base64: bool = False) -> Any:
        """The vectors in a kind of numbers: an array, or a list of texts."""
        rounded = round_to(self.z, kind)
        return [as_base64(row) for row in rounded] if base64 else rounded

    def data(self, kind: str = "float", *, base64: bool = False) -> list[dict[str, Any]]:
        """The vectors as OpenAI lists them."""
        rows = enumerate(self.rows(kind, base64=base64))
        return [{"object": "embedding", "index": index, "embedding": row} for index, row in rows]

    def usage(self) -> dict[str, int]:
        """As OpenAI counts: one token an image."""
        return {"prompt_tokens": len(self.z), "total_tokens": len(self.z)}

    def as_json(self, body: dict[str, Any]) -> Response:
        """A JSON answer that says in its headers what made the vectors."""
        return self.told(respond.as_json(body))

    def told(self, answer: Response) -> Response:
        """The answer with the headers that say what made its vectors."""
        answer.headers.update(self.found.headers)
        return answer


def asked_of_values(values: Sequence[object], param: str, model: str | None, **more: Any) -> Asked:
    """What a list of values asks for, each of which is an image."""
    return Asked(model, len(values), lambda: Images(decode_values(values, param)), **more)


async def ask(
    server: Server,
    request: Request,
    caller: Caller,
    space: str | None,
    understand: Callable[[], Awaitable[Asked]],
) -> Answer:
    """Embed what a request asks for. It has a place and a deadline before `understand` reads its body.

    Args:
        space: that the query expects the answer in.

    Raises:
        Rejected, QueueFull, ...: as `embed`; and what `understand` raises.
    """
    async with begun(server, request, caller):
        asked = await in_time(server, request, understand)
        require_count(asked.count, server.settings.most_images)

        async def read() -> Images:
            return await asyncio.to_thread(asked.read)

        named = wanted_of(asked.model, server)
        kind = asked.kind
        wanted = replace(
            named,
            dimensions=asked.dimensions,
            normalize=asked.normalize and kind is None,  # numbers of 8 bits and bits have a length of their own
            kind=kind,
            space=space,
        )
        found = await embed(server, request, caller, read, wanted)
    return Answer(asked, shape(found.z, asked.dimensions, normalize=asked.normalize), found)


async def read_body(server: Server, request: Request, model: type[Model], *, or_no_type: bool = False) -> Model:
    """A JSON body with images, in the server's bounds. Errors as `read_json`."""
    limits = server.settings
    return await read_json(request, model, limits.max_body_bytes, limits.most_images, or_no_type=or_no_type)


def as_list(value: object, param: str) -> list[object]:
    """One value, or a list of values, as a list.

    Raises:
        Rejected: 400, neither.
    """
    if isinstance(value, list):
        return value
    if isinstance(value, str | dict):
        return [value]
    raise Rejected(400, "invalid_request", f"{param}: neither a text, nor an object, nor a list of these", param)


def wanted_of(model: str | None, server: Server) -> Wanted:
    """What `model` means: a mask's reference, `cascade:REF`, which runs in its default mode, or the root by name."""
    if model is not None and model.startswith(CASCADE):
        return Wanted(cascade=model.removeprefix(CASCADE))
    return Wanted(mask=None if model == server.backbone.architecture else model)


def resolve(model: str, server: Server, caller: Caller) -> Resolved | None:
    """The version that `model` means now; None for the untouched backbone.

    Raises:
        Rejected: 403, another's name.
        InvalidArgument: no reference, as `cascade:` without a name.
        NotFound, Unavailable: as the registry.
    """
    wanted = wanted_of(model, server)
    reference = wanted.cascade if wanted.cascade is not None else wanted.mask
    if reference is None:
        return None
    caller.require_name(parse_reference(reference)[0])
    return server.registry.resolve("cascades" if wanted.cascade is not None else "masks", reference)


async def width_of(model: str, server: Server, found: Resolved | None) -> int:
    """Components of the vectors of what `model` was resolved to; of a cascade in its default mode."""
    width = server.backbone.n_features
    if found is None or not model.startswith(CASCADE):
        return width
    async with server.embedder.hold_cascade(found.digest) as cascade:
        return cascade.width(cascade.mode, width)


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """How OpenAPI describes a body of this model."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
