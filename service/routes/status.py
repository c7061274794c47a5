"""What the server is and how it is: /info, /livez, /readyz and /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.security import Reader
from service.server import TheServer
from smn_core.spaces import tell_pixels

router = APIRouter(tags=["status"])
T = TypeVar("T")
PROBE_S = 0.5
"""Probes answer within a second, whatever hangs."""


@router.get("/info")
async def info(server: TheServer, _: Reader) -> dict[str, Any]:
    """Backbone, preprocessing, limits, and what is resident."""
    backbone, settings, state = server.backbone, server.settings, await server.embedder.state()
    return {
        "model": backbone.architecture,
        "args": dict(backbone.args),
        "fingerprint": backbone.fingerprint,
        "layout": backbone.layout.digest,
        "dimensions": backbone.n_features,
        "maskable_weights": backbone.layout.n_weights,
        "space": server.spaces.root,
        "preprocess": tell_pixels(backbone.preprocess),
        "device": state.device,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "replicas": state.replicas,
        "forms": dict(state.forms),
        "slots": {"capacity": state.slots, "resident": state.resident_masks},
        "memory_bytes": {
            "theta": state.theta_bytes,
            "slots": state.slot_bytes,
            "masks": state.mask_bytes,
            "cascades": state.cascade_bytes,
        },
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_pixels": settings.max_pixels,
            "max_images": settings.max_images,
            "batch_size": settings.batch_size,
            "queue_images": settings.queue_images,
            "timeout_ms": settings.timeout_ms,
        },
    }


@router.get("/livez", response_model=dict[str, str])
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"description": "With the reasons."}})
async def readyz(server: TheServer) -> JSONResponse:
    """Whether to send work here; 503 with reasons while starting or draining.

    A registry that is away is a reason too, but resident masks go on serving, so the answer stays 200: replicas that
    all left the balancer together would turn a partial failure into a whole one.
    """
    reasons = []
    if not server.ready:
        reasons.append("starting")
    if server.draining:
        reasons.append("draining")
    troubles = await _soon(server.embedder.troubles())
    reasons += ["the engines do not answer"] if troubles is None else troubles
    ready, health = not reasons, server.registry.health()
    trouble = health.away or health.unwritable
    if trouble is not None:
        reasons.append(f"registry: {trouble}")
    body = {"status": "ready" if ready else "not ready", "reasons": reasons, "registry": trouble or "ok"}
    return JSONResponse(body, 200 if ready else 503, headers={} if ready else {"Retry-After": "1"})


@router.get("/metrics", response_class=Response)
async def metrics(server: TheServer) -> Response:
    """Prometheus text."""
    state = await _soon(server.embedder.state())
    if state is not None:  # else the gauges stay as they were
        server.metrics.hold(state)
    server.metrics.registry_is(server.registry.health())
    server.metrics.queue_images.set(server.admission.admitted)
    return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _soon(asked: Awaitable[T]) -> T | None:
    """What is asked of engines that may be in other processes; None where it does not come while a probe waits."""
    try:
        return await asyncio.wait_for(asked, PROBE_S)
    except TimeoutError:
        return None
