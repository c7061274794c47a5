"""What the client makes of a server's answers. Whatever comes, it is an answer of SMN or one clear error."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.errors import SMNError

Shape = Mapping[str, type | tuple[type, ...]]
"""The keys that an object must have, and the types of their values."""
WRITTEN: Shape = {"name": str, "version": int, "digest": str, "bytes": int, "warnings": list}
ALIASED: Shape = {"name": str, "alias": str, "version": int, "warnings": list}
PAGE: Shape = {"data": list, "next": (str, type(None))}
ENTRY: Shape = {"name": str, "current": dict, "versions": int}
CURRENT: Shape = {"version": int, "digest": str}
CLASSIFIED: Shape = {"space": str, "data": list}
MASK: Shape = {"current": dict, "metadata": dict}
CASCADE: Shape = {"masks": list}
PLACE: Shape = {"digest": str, "name": (str, type(None)), "version": (int, type(None))}
MAX_SHOWN = 200


class ServerError(SMNError):
    """The server refused the request; carries its message, code and status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Embeddings:
    """Embeddings in the order of the images. `digest` is that of the mask or cascade, or "root" if there was none.

    Vectors may be compared with those of the same `space` alone; "" is what a server of before spaces says.
    """

    embeddings: Float32[ndarray, "n d"]
    digest: str
    server_timing: str
    space: str = ""


def check(response: httpx2.Response) -> httpx2.Response:
    """The response, if the server did what it was asked.

    Raises:
        ServerError: it did not.
    """
    if response.is_success or response.status_code == 304:
        return response
    try:
        detail = response.json()["error"]
        code, message = str(detail["code"]), str(detail["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        code, message = "unknown", f"status {response.status_code}: {response.text[:MAX_SHOWN]}"
    raise ServerError(response.status_code, code, one_line(_without_key(response, message)))


def table_of(response: httpx2.Response, shape: Shape) -> dict[str, Any]:
    """A JSON object that has keys of these types, and perhaps more.

    Raises:
        ServerError: the answer is none.
    """
    try:
        found = response.json()
    except (ValueError, RecursionError):
        found = None
    return require_shape(response, found, shape)


def require_shape(response: httpx2.Response, found: object, shape: Shape) -> dict[str, Any]:
    """As `table_of`, for a part of an answer."""
    if isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in shape.items()):
        return found
    raise _strange(response)


def embeddings_of(response: httpx2.Response) -> Embeddings:
    """The embeddings of an npy answer.

    Raises:
        ServerError: the answer is none.
    """
    try:
        z = np.load(io.BytesIO(response.content), allow_pickle=False)
        digest = response.headers["x-smn-digest"]
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise _strange(response) from error
    if not isinstance(z, ndarray) or z.ndim != 2 or z.dtype != np.float32:
        raise _strange(response)
    headers = response.headers
    return Embeddings(z, digest, headers.get("server-timing", ""), headers.get("x-smn-space", ""))


def one_line(text: str) -> str:
    """A text of a stranger as one line that a terminal only prints."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _strange(response: httpx2.Response) -> ServerError:
    shown = one_line(_without_key(response, response.text[:MAX_SHOWN]))
    return ServerError(response.status_code, "unknown", f"the answer is not that of an SMN server: {shown!r}")


def _without_key(response: httpx2.Response, text: str) -> str:
    """Some proxies repeat the request in their error."""
    key = response.request.headers.get("authorization", "").removeprefix("Bearer ")
    return text.replace(key, "...") if key else text
