"""`create_app(settings)` builds the server and its routes. Read this file first.

`routes/embed -> bodies -> admission -> images -> embedding -> embedder -> passes -> batcher -> engine -> respond`
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from fastapi import Depends, FastAPI
from opentelemetry.trace import TracerProvider

from service import errors, tracing
from service.connection import Bodies
from service.console.page import router_of
from service.local import Local, engine_of
from service.registry.base import Registry
from service.routes import cascades, classify, docs, embed, gallery, map, masks, notes, openai, status
from service.routes.dialects import azure, cohere, inference, voyage, weaviate
from service.routes.dialects import openai as openai_embeddings
from service.schemas import ErrorBody
from service.security import guard_of, known_query
from service.server import Server
from service.settings import Settings
from service.telemetry import Metrics, Observed
from smn_core.backbone import Backbone, load_backbone

DESCRIPTION = """One frozen vision backbone, hundreds of specialities: `POST /embed?mask=NAME` embeds images through a
mask that was learned for their domain and uploaded with `PUT /masks/NAME`.

Every call takes `X-Request-ID`, which comes back, and `X-Timeout-Ms`, a deadline below the server's own (then 504).
Every answer with embeddings or labels has `X-SMN-Digest`, the digest of the mask that made them or `root`,
`X-SMN-Space`, in which its vectors may be compared, and `Server-Timing`: load, queue, decode, swap, forward and total
in milliseconds; what a mask warns of is in the JSON, or with an `application/x-npy` answer in `X-SMN-Warnings`. A call
that says `space` in its query, or `X-SMN-Expect-Space`, gets vectors in that space or 412. Every error is
`{"error": {"message", "type", "param", "code"}}`; 429 and 503 come with `Retry-After`."""
DIALECTS = (openai_embeddings, cohere, voyage, azure, weaviate, inference)
ERRORS = {code: {"model": ErrorBody} for code in (400, 401, 403, 404, 405, 409, 412, 413, 415, 422, 429, 500, 503, 504)}


def create_app(
    settings: Settings,
    backbone: Backbone | None = None,
    registry: Registry | None = None,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """The application. Backbone, registry and tracer are those of the settings, unless they are given.

    Raises:
        SMNError: the backbone cannot be loaded, the registry not opened, or the keys do not fit the address.
    """
    guard_of(settings)  # before the backbone is loaded
    backbone = backbone if backbone is not None else load_backbone(settings.spec())
    registry = registry if registry is not None else registry_of(settings, backbone)
    metrics = Metrics()
    threads = settings.threads or torch.get_num_threads()
    settings = settings.with_batch_size(threads, on_gpu=backbone.device.type != "cpu")
    embedder = Local(settings, engine_of(settings, backbone), registry, metrics)
    return app_of(settings, Server(settings, embedder, registry, metrics), tracer_provider)


def app_of(settings: Settings, server: Server, tracer_provider: TracerProvider | None = None) -> FastAPI:
    """The application around a server.

    Raises:
        InvalidArgument: the keys do not fit the address.
    """
    guard = guard_of(settings)
    exporting = tracing.provider_of(settings.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await server.start()
            yield
        finally:  # a start that fails has started a part
            server.close()
            if exporting is not None:
                exporting.shutdown()

    app = FastAPI(
        title="SMN",
        description=DESCRIPTION,
        lifespan=lifespan,
        responses=ERRORS,  # type: ignore[arg-type]
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=tracing.config_of(tracer_provider or exporting),
    )
    app.state.server, app.state.guard = server, guard
    errors.install(app)
    for routes in (embed, classify, masks, notes, cascades, openai, gallery, map, *DIALECTS):
        app.include_router(routes.router, dependencies=[Depends(known_query)])
    for routes in (status, docs):
        app.include_router(routes.router)
    if not settings.no_console:
        app.include_router(router_of())
    app.add_middleware(Bodies, budget=server.body_bytes)
    app.add_middleware(Observed, metrics=server.metrics)
    return app


def registry_of(settings: Settings, backbone: Backbone) -> Registry:
    """The registry that the settings name, for this backbone's masks."""
    from service.registry.open import open_registry

    return open_registry(settings.registry, backbone.fingerprint)
