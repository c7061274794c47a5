"""What the client makes of a server's answers. Whatever comes, it is an answer of SMN or one clear error."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2
import numpy as np
from numpy import ndarray

from smn_core.answers import Label
from smn_core.errors import OtherSpace, SMNError

T = TypeVar("T")
Shape = Mapping[str, type | tuple[type, ...]]
"""The keys that an object must have, and the types of their values."""
WRITTEN: Shape = {"name": str, "version": int, "digest": str, "bytes": int, "warnings": list}
ALIASED: Shape = {"name": str, "alias": str, "version": int, "warnings": list}
PAGE: Shape = {"data": list, "next": (str, type(None))}
ENTRY: Shape = {"name": str, "current": dict, "versions": int}
CURRENT: Shape = {"version": int, "digest": str}
MASK: Shape = {"current": dict, "metadata": dict}
CASCADE: Shape = {"masks": list, "current": dict}
VERSIONS: Shape = {"versions": list}
VERSION: Shape = {"parent": (dict, type(None))}
PLACE: Shape = {"digest": str, "name": (str, type(None)), "version": (int, type(None))}
LABELS: Shape = {"data": list, "space": str}
LABEL: Shape = {"index": int, "label": str, "probs": list, "classes": list, "num_classes": int}
LIMITS: Shape = {"limits": dict}
SPACE_OF_ROOT: Shape = {"space": str, "dimensions": int}
MODEL: Shape = {"space": str}
MODES: Shape = {"modes": dict, "current": dict, "versions": list, "aliases": dict}
MAX_SHOWN = 200


class ServerError(SMNError):
    """The server refused the request; carries its message, code and status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class ServerAway(SMNError):
    """No server answered: the address is wrong, or nothing listens there."""

    code = "server_away"


class SpaceRefused(ServerError, OtherSpace):
    """The server answers in another space than the one that the request names."""


@dataclass(frozen=True)
class Answered(Generic[T]):
    """What a server made of the images of one request, a row each."""

    rows: Sequence[T]
    digest: str
    space: str
    server_timing: str


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
    kind = SpaceRefused if code == OtherSpace.code else ServerError
    raise kind(response.status_code, code, one_line(_without_key(response, message)))


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


def embeddings_of(response: httpx2.Response) -> Answered[ndarray]:
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
    return Answered(list(z), digest, response.headers.get("x-smn-space", ""), response.headers.get("server-timing", ""))


def labels_of(response: httpx2.Response) -> Answered[Label]:
    """The labels of an answer of `/classify`.

    Raises:
        ServerError: the answer is none.
    """
    found = table_of(response, LABELS)
    rows = [require_shape(response, entry, LABEL) for entry in found["data"]]
    try:
        labels = [
            Label(
                row["label"],
                tuple(map(float, np.array(row["probs"], np.float32))),
                tuple(map(str, row["classes"])),
                row["num_classes"],
            )
            for row in sorted(rows, key=lambda row: row["index"])
        ]
    except (TypeError, ValueError) as error:
        raise _strange(response) from error
    headers = response.headers
    return Answered(labels, headers.get("x-smn-digest", ""), found["space"], headers.get("server-timing", ""))


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
