"""The one error body, and the one table from exceptions to HTTP statuses."""

from __future__ import annotations

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.admission import QueueFull
from service.registry.within import TooLate
from smn_core import errors
from smn_core.names import sayable

RETRY_AFTER_S = 1
NEAR = "; near it: "
"""What the registry puts before names that are nearly the one that is not there."""


class Rejected(errors.SMNError):
    """A request that breaks a rule of the API; carries its own status."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


# The first class that matches decides, so the narrow ones come first.
STATUS: tuple[tuple[type[errors.SMNError], int], ...] = (
    (errors.InvalidArgument, 400),
    (errors.NotFound, 404),
    (errors.MissingMasks, 422),
    (errors.Conflict, 409),
    (errors.PreconditionFailed, 412),
    (errors.InvalidImage, 422),
    (errors.InvalidMask, 422),
    (errors.InvalidCascade, 422),
    (errors.UnknownModel, 422),
    (QueueFull, 429),
    (TooLate, 504),
    (errors.Unavailable, 503),
    (errors.NotReady, 503),
    (errors.SMNError, 500),
)
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    412: "precondition_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
BRANCHES = ("str", "list[str]")
HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header of Triton's binary extension."""
CODES = {404: "no_such_route", 405: "method_not_allowed"}


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, object]:
    """`{"error": {"message", "type", "param", "code"}}`: a message that repeats what a client sent can be written."""
    said = {"message": sayable(message), "type": TYPES.get(status, "server_error")}
    return {"error": {**said, "param": sayable(param) if param is not None else None, "code": code}}


def _without_names_of_others(message: str, prefix: str) -> str:
    """A message that names near misses, of which the caller is told those that begin with the prefix of its key."""
    said, _, near = message.partition(NEAR)
    own = [name for name in near.split(", ") if name.startswith(prefix)]
    return f"{said}{NEAR}{', '.join(own)}" if near and own else said


def status_of(error: errors.SMNError) -> int:
    """The HTTP status of an exception."""
    if isinstance(error, Rejected):
        return error.status
    return next(status for kind, status in STATUS if isinstance(error, kind))


def response_of(status: int, code: str, message: str, param: str | None = None) -> JSONResponse:
    """The error answer, with the headers that its status asks for."""
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(math.ceil(RETRY_AFTER_S))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(status, code, message, param), status, headers)


def answer_to(request: Request, status: int, code: str, message: str, param: str | None = None) -> JSONResponse:
    """The error answer to a request. Clients of Triton's extension add its `error` to a text, so it must be one."""
    answer = response_of(status, code, message, param)
    if HEADER_LENGTH in request.headers and request.url.path.startswith("/v2/models/"):
        del answer.headers["content-length"]
        return JSONResponse({"error": sayable(message)}, status, dict(answer.headers))
    return answer


def _methods_of(request: Request) -> list[str]:
    """The methods that a path takes. Starlette alone would name those of the first route with that path."""
    path = getattr(request.scope.get("route"), "path", "")
    methods = {method.upper() for method in request.app.openapi()["paths"].get(path, ())}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def install(app: FastAPI) -> None:
    """Make every error of the application answer with the one body."""

    @app.exception_handler(errors.SMNError)
    async def _(request: Request, error: errors.SMNError) -> JSONResponse:
        message = str(error)
        caller = getattr(request.state, "caller", None)
        if isinstance(error, errors.NotFound) and caller is not None and caller.prefix:
            message = _without_names_of_others(message, caller.prefix)
        return answer_to(request, status_of(error), error.code, message, getattr(error, "param", None))

    @app.exception_handler(ClientDisconnect)
    async def _(_: Request, __: ClientDisconnect) -> JSONResponse:
        return response_of(499, "client_gone", "the client hung up before its body was here")  # only the log sees it

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # pydantic names the branch of a union that it tried, as in `input.list[str].0`: leave it out.
        place = ".".join(str(part) for part in first["loc"][1:] if part not in BRANCHES) or None
        return answer_to(request, 400, "invalid_request", f"{place or 'request'}: {first['msg']}", place)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, "invalid_request")
        answer = response_of(error.status_code, code, str(error.detail))
        answer.headers.update(error.headers or {})
        if error.status_code == 405 and (methods := _methods_of(request)):
            answer.headers["Allow"] = ", ".join(methods)
        return answer

    @app.exception_handler(Exception)
    async def _(request: Request, __: Exception) -> JSONResponse:
        answer = response_of(500, "internal_error", "the server failed; its log has the request id")
        # This answer is made outside of the middleware that sets the header on all others.
        answer.headers["X-Request-ID"] = request.state.record.request_id
        return answer
