"""SMN in Python: `smn.Embedder` embeds in this process, `smn.Client` and `smn.AsyncClient` through a server.

    embedder = smn.Embedder("vit_tiny_patch16_224", weights="vit_tiny.safetensors")
    embedder = smn.Client("http://127.0.0.1:8000")     # the one line that changes
    found = embedder.embed("photos/", mask="flowers")

A name is imported when it is first used: the clients need no torch, the Embedder no extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smn_core.errors import InvalidArgument, OtherSpace, SMNError

if TYPE_CHECKING:
    from service.client import AsyncClient, Client, ServerAway, ServerError
    from smn.command import app, main
    from smn.embedder import Embedder
    from smn_core.answers import Embeddings, Label, Labels, Row
    from smn_core.collection import Collection

__all__ = [
    "AsyncClient",
    "Client",
    "Collection",
    "Embedder",
    "Embeddings",
    "InvalidArgument",
    "Label",
    "Labels",
    "OtherSpace",
    "Row",
    "SMNError",
    "ServerAway",
    "ServerError",
    "app",
    "main",
]

_HOMES = {
    "smn.command": ("app", "main"),
    "smn.embedder": ("Embedder",),
    "smn_core.answers": ("Embeddings", "Label", "Labels", "Row"),
    "smn_core.collection": ("Collection",),
    "service.client": ("AsyncClient", "Client", "ServerAway", "ServerError"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from its home.

    Raises:
        AttributeError: there is no such name.
        InvalidArgument: it needs an extra that is not installed; the message names it.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'smn' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if _HOME[name] != "service.client" or missing in ("smn_core", "service"):
            raise
        needs = f"smn.{name} needs {missing}, of the extra service: uv pip install -e '.[service]' in a clone"
        raise InvalidArgument(needs) from error


def __dir__() -> list[str]:
    return sorted(__all__)
