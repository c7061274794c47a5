"""The HTTP side as a Ray Serve deployment: the application of a plain server, with its engines in other processes."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import app_of, registry_of
from service.on_ray.meters import Doubled
from service.on_ray.remote import Remote
from service.server import Server
from service.settings import Settings
from service.telemetry import Metrics, configure_logs
from smn_core.backbone import Backbone


@serve.ingress()
class Ingress:
    """Has routes, keys, names, decoding and deadlines. It resolves a name once a request, and sends on the digest.

    Args:
        backbone: what it is, without its weights.
    """

    def __init__(self, settings: Settings, backbone: Backbone, replicas: DeploymentHandle[Any]) -> None:
        configure_logs(settings.log_format)
        metrics, registry = Metrics(Doubled()), registry_of(settings, backbone)
        self._server = Server(settings, Remote(settings, backbone, registry, replicas, metrics), registry, metrics)
        self._settings = settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return OneRequestId(app_of(self._settings, self._server))


class OneRequestId:
    """Middleware: removes the application's X-Request-ID, because Ray's proxy sets the same one on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-ID"]
            await send(message)

        await self._app(scope, receive, sending)
