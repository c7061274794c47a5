"""The Open Inference Protocol, version 2, over REST; a model is a mask, a cascade or the backbone.

With Triton's binary extension tensors stand behind the JSON, and an error is a text, because its clients add it to one.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.bodies import Images
from service.errors import HEADER_LENGTH, Rejected
from service.inferbody import NAME, InferRequest, parse_infer
from service.reading import media_type, read_buffer
from service.registry.base import CASCADE, Kind
from service.routes.dialects.asking import Answer, Asked, ask, body_of, resolve, width_of
from service.routes.status import readyz
from service.security import Caller, Reader
from service.server import Server, TheServer
from service.spaces import SpaceQuery

router = APIRouter(prefix="/v2", tags=["dialects"])
OUTPUT = "embedding"
BINARY = "application/octet-stream"
KINDS = ("", "application/json", BINARY, "application/vnd.sagemaker-triton.binary+json")
LENGTH = re.compile(r"[0-9]{1,15}")
OCTETS = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
Model = Annotated[str, Path(description="A mask's reference, `cascade:REF`, or the backbone's name for the root.")]
Version = Annotated[str, Path(description="A version's number, of a model that names none itself.")]


class ServerInfo(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorInfo(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelInfo(BaseModel):
    """`versions` are those that are there; the input may be FP32 [n,3,H,W] as well."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class OutputTensor(TensorInfo):
    """Flat, row by row; or behind the JSON, as `parameters.binary_data_size` says."""

    data: list[float] | None = None
    parameters: dict[str, Any] | None = None


class InferAnswer(BaseModel):
    """`parameters`, where the protocol has room for more than itself, has `space`."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any]
    outputs: list[OutputTensor]


@router.get("", response_model=ServerInfo)
async def server_info(request: Request, _: Reader) -> dict[str, Any]:
    """What the protocol says of a server."""
    return {"name": "smn", "version": request.app.version, "extensions": ["binary_tensor_data"]}


@router.get("/health/live", response_model=dict[str, bool])
async def live() -> dict[str, bool]:
    """The process answers."""
    return {"live": True}


@router.get("/health/ready", response_model=dict[str, bool], responses={503: {"description": "Not ready."}})
async def ready(server: TheServer) -> JSONResponse:
    """Whether to send work here."""
    found = await readyz(server)
    is_ready = found.status_code == 200
    return JSONResponse({"ready": is_ready}, found.status_code, headers={} if is_ready else {"Retry-After": "1"})


@router.get("/models/{model}", response_model=ModelInfo)
async def model_info(model: Model, server: TheServer, caller: Reader) -> dict[str, Any]:
    """A model's versions, input and output."""
    found = resolve(model, server, caller)
    versions = list[str]()
    if found is not None:
        kind: Kind = "cascades" if model.startswith(CASCADE) else "masks"
        versions = [str(one.version) for one in server.registry.entry(kind, found.name).versions]
    return {
        "name": model,
        "versions": versions,
        "platform": f"smn_{server.backbone.architecture}",
        "inputs": [{"name": NAME, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, await width_of(model, server, found)]}],
    }


@router.get("/models/{model}/ready", response_model=dict[str, Any])
async def model_ready(model: Model, server: TheServer, caller: Reader) -> JSONResponse:
    """Whether a model is there, and the server ready."""
    return await _ready(model, model, server, caller)


@router.post(
    "/models/{model}/infer",
    response_model=InferAnswer,
    openapi_extra=body_of(InferRequest),
    responses={200: {"content": OCTETS}},
)
async def infer(
    model: Model, server: TheServer, request: Request, caller: Reader, space: SpaceQuery = None
) -> Response:
    """Embed a tensor of images; `parameters` may have `dimensions` and `normalize`."""
    return await _infer(model, model, server, request, caller, space)


@router.get("/models/{model}/versions/{version}", response_model=ModelInfo)
async def version_info(model: Model, version: Version, server: TheServer, caller: Reader) -> dict[str, Any]:
    """The same of one version."""
    return {**await model_info(_at(model, version, server), server, caller), "name": model, "versions": [version]}


@router.get("/models/{model}/versions/{version}/ready", response_model=dict[str, Any])
async def version_ready(model: Model, version: Version, server: TheServer, caller: Reader) -> JSONResponse:
    """The same of one version."""
    return await _ready(model, _at(model, version, server), server, caller)


@router.post(
    "/models/{model}/versions/{version}/infer",
    response_model=InferAnswer,
    openapi_extra=body_of(InferRequest),
    responses={200: {"content": OCTETS}},
)
async def infer_version(
    model: Model, version: Version, server: TheServer, request: Request, caller: Reader, space: SpaceQuery = None
) -> Response:
    """The same through one version."""
    return await _infer(model, _at(model, version, server), server, request, caller, space)


def _at(model: str, version: str, server: Server) -> str:
    """The reference of a version."""
    if model == server.backbone.architecture or "@" in model or not version.isdecimal():
        said = f"{model[:64]!r} has no version {version[:32]!r}: versions are numbers, of a name without one"
        raise Rejected(404, "not_found", said, "version")
    return f"{model}@{version}"


async def _ready(name: str, reference: str, server: Server, caller: Caller) -> JSONResponse:
    resolve(reference, server, caller)
    found = await ready(server)
    return JSONResponse({"name": name, "ready": found.status_code == 200}, found.status_code)


async def _infer(
    name: str, reference: str, server: Server, request: Request, caller: Caller, space: str | None
) -> Response:
    limits = server.settings
    header_bytes = _header_bytes(request)
    asked_for: InferRequest | None = None

    async def understand() -> Asked:
        nonlocal asked_for
        if (kind := media_type(request)) not in KINDS:
            raise Rejected(415, "unsupported_type", f"content type {kind}: send application/json", "Content-Type")
        body = await read_buffer(request, limits.max_body_bytes)
        found, images = await asyncio.to_thread(parse_infer, body, header_bytes, limits.most_images)
        asked_for = found
        return _asked(found, reference, images)

    answer = await ask(server, request, caller, space, understand)
    assert asked_for is not None
    return _answer(name, asked_for, answer)


def _asked(body: InferRequest, reference: str, images: Images) -> Asked:
    for output in body.outputs or []:
        if output.name != OUTPUT:
            said = f"there is no output {output.name[:32]!r}: the only one is {OUTPUT!r}"
            raise Rejected(422, "invalid_tensor", said, "outputs")
    dimensions, normalize = body.parameters.get("dimensions"), body.parameters.get("normalize", False)
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        said = "parameters.dimensions is no whole number from 1"
        raise Rejected(400, "invalid_request", said, "parameters.dimensions")
    if not isinstance(normalize, bool):
        raise Rejected(400, "invalid_request", "parameters.normalize is neither true nor false", "parameters.normalize")
    return Asked(reference, images.count, lambda: images, dimensions, normalize)


def _answer(name: str, body: InferRequest, answer: Answer) -> Response:
    used = answer.found.cascade or answer.found.mask
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": list(answer.z.shape)}
    said: dict[str, Any] = {"model_name": name, "parameters": {"space": answer.found.space}, "outputs": [output]}
    if used is not None:
        said["model_version"] = str(used.version)
    if body.id is not None:
        said["id"] = body.id
    of_output = body.outputs[0].parameters.get("binary_data") if body.outputs else None
    if of_output is not True and (of_output is False or body.parameters.get("binary_data_output") is not True):
        output["data"] = answer.z.reshape(-1)
        return answer.as_json(said)
    values = answer.z.astype("<f4", copy=False).tobytes()
    output["parameters"] = {"binary_data_size": len(values)}
    header = orjson.dumps(said)
    headers = {HEADER_LENGTH: str(len(header))}
    return answer.told(Response(header + values, media_type=BINARY, headers=headers))


def _header_bytes(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not LENGTH.fullmatch(text.strip()):
        said = f"{HEADER_LENGTH} {text[:32]!r} is not a number of bytes"
        raise Rejected(400, "invalid_header_length", said, HEADER_LENGTH)
    return int(text)
