"""The embedder of an ingress: asks one replica after the other until one has embedded. Embedding twice is harmless."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from service.embedder import Done, Through
from service.library import Library
from service.on_ray.call import Call, Embedded, Refused
from service.record import Record
from service.registry.base import Registry
from service.settings import Settings
from service.telemetry import Metrics, State
from smn_core.backbone import Backbone
from smn_core.cascade.cascade import Cascade
from smn_core.errors import Unavailable, WrongBackbone
from smn_core.mask import CodedMask, Head, TaskMask
from smn_core.maskfile import check_fits, decoded

STATE_WITHIN_S = 2.0
"""A replica that does not answer within this time counts as absent. Probes wait longer."""
AGAIN_S = 0.02
"""Pause after a replica was lost: it takes Ray a moment to tell its routers."""
SHELF_BYTES = 1024
"""What a mask without a classifier counts for, so that shelves of such masks are bounded too."""

log = structlog.get_logger("smn.remote")


class Remote:
    """See `Embedder`. Its library holds cascades, and of masks their classifiers alone.

    Modes and widths are checked before anything is sent, and labels are worked out here.
    """

    def __init__(
        self,
        settings: Settings,
        backbone: Backbone,
        registry: Registry,
        replicas: DeploymentHandle[Any],
        metrics: Metrics,
    ) -> None:
        self._backbone, self._replicas = backbone, replicas
        self._library = Library(registry, HeadsAlone(backbone), settings.cache_bytes, metrics.load_seconds.observe)

    @property
    def backbone(self) -> Backbone:
        return self._backbone

    async def start(self) -> None:
        """Does nothing: replicas start by themselves, and `troubles` says whether one is there."""

    async def embed(self, record: Record, through: Through, decoded: Awaitable[Tensor]) -> Done:
        """Ask replicas until one embeds. The next is asked where one died, is full, or has another backbone.

        Raises:
            as the first refusal that no other replica can mend; QueueFull, Unavailable where all refused so.
        """
        x = (await decoded).numpy()
        call = Call(through, self.backbone.fingerprint, 0.0, record.request_id, who=record.who)
        while True:
            call = replace(call, left_s=max(0.0, record.ends - time.perf_counter()))
            try:
                found = await self._ask(call, x)
            except RayTaskError:
                raise  # the replica's own code failed: that is no loss of a replica
            except DeploymentUnavailableError as error:
                raise Unavailable("no replica runs: their log says why") from error
            except RayError as error:
                log.warning("replica lost", request_id=record.request_id, error=str(error).partition("\n")[0])
                await asyncio.sleep(AGAIN_S)
                continue
            if isinstance(found, Embedded):
                record.stages |= found.stages
                return found.done
            if not found.elsewhere or found.replica in call.avoid:  # every other one was asked in between
                raise _for_client(found.error)
            call = replace(call, avoid=(*call.avoid, found.replica))

    async def _ask(self, call: Call, x: Any) -> Embedded | Refused:
        """Make one attempt. Cancelling it drops the work on the replica too."""
        response = self._replicas.embed.remote(call, x)
        try:
            found: Embedded | Refused = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return found

    async def decode(self, mask: TaskMask) -> TaskMask:
        """Let a replica decode the bits: an ingress has no weights."""
        if not isinstance(mask, CodedMask):
            return mask
        try:
            found: Any = await self._replicas.decode.remote(mask)
        except RayTaskError:
            raise
        except RayError as error:
            raise Unavailable("no replica decoded the mask: send it again") from error
        if isinstance(found, Refused):
            raise _for_client(found.error)
        return decoded(mask, np.array(found))

    def hold_cascade(self, digest: str) -> AbstractAsyncContextManager[Cascade]:
        return self._library.hold_cascade(digest)

    async def head(self, digest: str) -> Head | None:
        return await self._library.head(digest)

    async def state(self) -> State:
        """The sums over all replicas that answer, and what this ingress holds itself."""
        found = await self._states()
        device = ", ".join(sorted({state.device for state in found}))
        kinds = {kind for state in found for kind in state.forms}
        forms = {kind: ", ".join(sorted({state.forms.get(kind, "") for state in found})) for kind in sorted(kinds)}
        total = State(device=device, replicas=len(found), forms=forms)
        summed = ("slots", "resident_masks", "theta_bytes", "slot_bytes", "mask_bytes", "shelves")
        total = replace(total, **{name: sum(getattr(state, name) for state in found) for name in summed})
        here = self._library
        return replace(total, mask_bytes=total.mask_bytes + here.bytes, cascade_bytes=here.cascade_bytes)

    async def troubles(self) -> Sequence[str]:
        return [] if await self._states() else ["no replica answers"]

    def stop(self) -> None:
        """Does nothing: Ray ends the requests of an ingress whose time is over."""

    def close(self) -> None:
        self._library.close()

    async def _states(self) -> list[State]:
        try:
            asked = self._replicas.broadcast("state")
            found = await asyncio.wait_for(asked.results_async(return_exceptions=True), STATE_WITHIN_S)
        except (DeploymentUnavailableError, TimeoutError):
            return []
        return [state for state in found if isinstance(state, State)]


class HeadsAlone:
    """The `MaskHolder` of a library that holds of masks no more than their classifiers, on its own shelves."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._seen: set[str] = set()

    @property
    def backbone(self) -> Backbone:
        return self._backbone

    def prepare(self, mask: TaskMask) -> list[str]:
        assert mask.digest is not None  # it comes from a file
        warnings = check_fits(mask, self._backbone)
        self._seen.add(mask.digest)
        return warnings

    def ready(self, digest: str) -> bool:
        return digest in self._seen

    def bytes_of(self, digest: str) -> int:
        return SHELF_BYTES if digest in self._seen else 0

    def release(self, digest: str) -> None:
        self._seen.discard(digest)


def _for_client(error: Exception) -> Exception:
    """The error as the client gets it. A replica with another backbone is not the client's fault: 503, not 422."""
    return Unavailable(str(error)) if isinstance(error, WrongBackbone) else error
