"""Ray Serve with one full model a task behind `@serve.multiplexed`, on a Ray of its own with one replica."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from torch import nn

from benchmarks.peers.copies import Copies, Place, place_of_arguments

OBJECTS_BYTES = 100 * 2**20


def run(place: Place) -> None:
    """Serve until a signal."""

    @serve.deployment(num_replicas=1, max_ongoing_requests=16)  # type: ignore[misc,untyped-decorator,unused-ignore]
    class Tasks:
        def __init__(self, place: Place) -> None:
            import torch

            torch.set_num_threads(1)
            self._copies = Copies(place)

        @serve.multiplexed(max_num_models_per_replica=place.capacity)  # type: ignore[misc,untyped-decorator,unused-ignore]
        async def model(self, task: str) -> nn.Module:
            return await asyncio.to_thread(self._copies.load, task)

        async def __call__(self, request: Request) -> dict[str, Any]:
            import torch

            if request.method == "GET":
                return {}
            form = await request.form()
            data = await form["image"].read()  # type: ignore[union-attr]
            model = await self.model(serve.get_multiplexed_model_id())
            with torch.inference_mode():
                return {"embeddings": model(self._copies.reader(data)[None]).tolist()}

    # Its own, whatever else of Ray runs here.
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=OBJECTS_BYTES,
        log_to_driver=False,
        _system_config={"agent_register_timeout_ms": 600_000},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": place.port})
    serve.run(Tasks.bind(place))  # type: ignore[attr-defined,unused-ignore]
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    run(place_of_arguments())
