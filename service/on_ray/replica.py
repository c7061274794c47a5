"""One engine with its library and batcher, as a Ray Serve deployment. It is given digests and never sees names."""

from __future__ import annotations

import asyncio
import warnings

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy import ndarray
from ray import serve

from service.admission import Admission, QueueFull
from service.app import registry_of
from service.local import Local, engine_of
from service.on_ray.call import Call, Embedded, Refused
from service.on_ray.meters import Doubled
from service.record import Record
from service.settings import Settings
from service.telemetry import Metrics, State, configure_logs
from smn_core.backbone import Backbone, load_backbone
from smn_core.errors import SMNError, Unavailable, WrongBackbone
from smn_core.mask import CodedMask
from smn_core.verbs.heap import keep_freed_memory


class Replica:
    """Embeds what ingresses send. It batches across requests and masks itself; Ray only chooses the replica.

    Args:
        fingerprint: of the backbone that the ingresses speak for; another one is refused.
    """

    async def __init__(self, settings: Settings, fingerprint: str) -> None:  # type: ignore[misc]  # Ray awaits it
        configure_logs(settings.log_format)
        keep_freed_memory()
        # The pixels are read where Ray's object store has them. torch cannot mark a tensor read-only; nothing writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        backbone = load_backbone(settings.spec())
        self._id = serve.get_replica_context().replica_id.unique_id
        self._require(fingerprint, backbone)
        self._metrics = Metrics(Doubled())
        self._registry = registry_of(settings, backbone)
        self._local = Local(settings, engine_of(settings, backbone), self._registry, self._metrics)
        self._admission = Admission(settings.queue_images)
        await self._local.start()

    async def embed(self, call: Call, x: Float32[ndarray, "n 3 h w"]) -> Embedded | Refused:
        """Embeddings of normalised images. A refusal is returned, not raised: Ray would log a traceback for each."""
        try:
            self._require(call.fingerprint, self._local.backbone)
            with self._admission.admit(len(x), call.who):
                async with asyncio.timeout(call.left_s):
                    record = Record(call.request_id, who=call.who)
                    done = await self._local.embed(record, call.through, _given(x))
        except (QueueFull, WrongBackbone, Unavailable) as error:
            return Refused(self._id, error, elsewhere=True)
        except (SMNError, TimeoutError) as error:
            return Refused(self._id, error)
        return Embedded(done, record.stages)

    async def decode(self, mask: CodedMask) -> UInt8[ndarray, "n_bytes"] | Refused:
        """The packed bits of a mask that an ingress could not decode. A refusal is returned, as `embed` does."""
        try:
            return (await self._local.decode(mask)).packed
        except SMNError as error:
            return Refused(self._id, error)

    async def state(self) -> State:
        """What its engine holds."""
        return await self._local.state()

    async def check_health(self) -> None:
        """Ray asks every few seconds, and replaces a replica that raises."""
        if troubles := await self._local.troubles():
            raise RuntimeError("; ".join(troubles))
        self._metrics.queue_images.set(self._admission.admitted)
        self._metrics.hold(await self._local.state())

    def __del__(self) -> None:
        if hasattr(self, "_local"):
            self._local.close()
            self._registry.close()

    def _require(self, fingerprint: str, backbone: Backbone) -> None:
        if fingerprint != backbone.fingerprint:
            raise WrongBackbone(
                f"replica {self._id} has {backbone.architecture} with fingerprint {backbone.fingerprint[:16]}..., the "
                f"ingress speaks for {fingerprint[:16]}...: give every node the same weights"
            )


async def _given(x: Float32[ndarray, "n 3 h w"]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))
