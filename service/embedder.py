"""The contract of what embeds decoded images: the engine of this process (`local.py`), or replicas on Ray.

Everything before it (routes, names, admission, decoding, deadline) is the same for both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from service.record import Record
from service.telemetry import State
from smn_core.backbone import Backbone
from smn_core.cascade.cascade import Cascade
from smn_core.mask import Head


@dataclass(frozen=True)
class Through:
    """What images go through, by digest: a mask, a cascade in a mode, or neither: then the untouched backbone."""

    mask: str | None = None
    cascade: str | None = None
    mode: str = ""


@dataclass(frozen=True)
class Done:
    """Embeddings, the masks' warnings, and the experts that a conditional cascade picked, from 0."""

    z: Float32[ndarray, "n d"]
    warnings: list[str] = field(default_factory=list)
    chosen: Int64[ndarray, "n"] | None = None


@runtime_checkable
class Embedder(Protocol):
    """Embeds decoded images. `backbone` describes the model, which may be in another process."""

    @property
    def backbone(self) -> Backbone: ...

    async def start(self) -> None:
        """Do what must be done before the server says that it is ready.

        Raises:
            SMNError: it cannot embed, or what is to be resident cannot be loaded.
        """

    async def embed(self, record: Record, through: Through, decoded: Awaitable[Tensor]) -> Done:
        """Embeddings of the images that `decoded` gives, by `record.ends`; its stages are written to the record.

        Raises:
            NotFound, Unavailable, InvalidMask, InvalidCascade: what it should go through cannot be loaded.
            QueueFull, EngineFailed, TimeoutError: as they say.
        """

    def hold_cascade(self, digest: str) -> AbstractAsyncContextManager[Cascade]:
        """A cascade, without its masks, inside the block; raises as `Library.hold_cascade`."""

    async def head(self, digest: str) -> Head | None:
        """The linear classifier of a mask, None where its file has none; raises as `Library.head`."""

    async def state(self) -> State:
        """What all replicas together hold now."""

    async def troubles(self) -> Sequence[str]:
        """Why nothing can be embedded now; empty where it can."""

    def stop(self) -> None:
        """Fail the requests that wait. May block."""

    def close(self) -> None:
        """Give back threads and memory."""
