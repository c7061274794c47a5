"""Builds a Ray Serve application of settings, ingresses in front of replicas, and runs it for `smn serve --on ray`.

A Ray cluster that is there already runs it as `serve run service.on_ray.application:application registry=redis://...`,
KubeRay by the same path; what is not given comes from the `SMN_` variables.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig
from torch import nn

from service.on_ray.ingress import Ingress
from service.on_ray.placement import HolderRouter
from service.on_ray.replica import Replica
from service.registry.open import REDIS_SCHEMES
from service.security import guard_of
from service.settings import Settings
from smn_core.backbone import Backbone, load_backbone
from smn_core.errors import InvalidArgument, Unavailable

NAME = "smn"
HEALTH_EVERY_S, HEALTH_WITHIN_S = 2.0, 30.0
HEAD = "node:__internal_head__"
"""What Ray calls the head node among its resources."""
HOLDERS = f"{HolderRouter.__module__}.{HolderRouter.__qualname__}"
INGRESS_REQUESTS = 10_000
"""More than an ingress admits, so that a request too many gets the ingress's 429 instead of waiting in Ray's proxy."""


def application(args: dict[str, str]) -> serve.Application:
    """What `serve run` and KubeRay build: the settings as `name=value`, or from the `SMN_` variables.

    Raises:
        SMNError: as `describe`.
    """
    settings = Settings(**{"on": "ray", **args})  # type: ignore[arg-type]
    return build(settings, describe(settings))


def describe(settings: Settings) -> Backbone:
    """The backbone without its weights: all that an ingress needs, and small enough to send.

    Raises:
        InvalidArgument: a registry that other machines do not have, or keys that do not fit the address.
        SMNError: it cannot be loaded.
    """
    guard_of(settings)
    if settings.registry.partition(":")[0] not in REDIS_SCHEMES:
        raise InvalidArgument(
            f"--on ray needs a registry that every node reaches: --registry redis://..., not {settings.registry}"
        )
    return replace(load_backbone(replace(settings.spec(), device="cpu")), model=nn.Identity(), theta=None)


def build(settings: Settings, backbone: Backbone, router: str | None = HOLDERS) -> serve.Application:
    """The application; `backbone` is what `describe` says, `router` the class that places requests, None Ray's own."""
    # Ray gives a replica as many threads as processors.
    threads = settings.threads or round(settings.replica_cpus)
    settings = settings.with_batch_size(threads, on_gpu=settings.replica_gpus > 0)
    logging_config = LoggingConfig(enable_access_log=False)
    deployment: Any = serve.deployment  # its overloads are declared as decorators
    shared: dict[str, Any] = {
        "graceful_shutdown_timeout_s": settings.drain_s,
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": HEALTH_EVERY_S,
        "health_check_timeout_s": HEALTH_WITHIN_S,
        "logging_config": logging_config,
    }
    replicas = deployment(
        Replica,
        # A request is an image at least: the replica's own bound refuses first, and by images.
        max_ongoing_requests=settings.queue_images + 1,
        ray_actor_options={"num_cpus": settings.replica_cpus, "num_gpus": settings.replica_gpus},
        request_router_config={"request_router_class": router} if router else {},
        **_how_many(settings),
        **shared,
    )
    ingress = deployment(
        Ingress,
        max_ongoing_requests=INGRESS_REQUESTS,
        **_where(settings),
        **shared,
    )
    keyless = settings.model_copy(update={"api_keys": [], "admin_keys": []})
    bound: serve.Application = ingress.bind(settings, backbone, replicas.bind(keyless, backbone.fingerprint))
    return bound


def _how_many(settings: Settings) -> dict[str, Any]:
    if settings.max_replicas <= settings.replicas:
        return {"num_replicas": settings.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=settings.replicas,
            max_replicas=settings.max_replicas,
            # A batch in work while the next one gathers.
            target_ongoing_requests=max(2, settings.batch_size),
        )
    }


def _where(settings: Settings) -> dict[str, Any]:
    """Where ingresses run: a single one on the head, without which nothing works; several on as many nodes.

    A proxy prefers the ingress of its own node, so a node that goes takes only those requests that came in by it.
    """
    if settings.ingresses == 1:
        return {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0, "resources": {HEAD: 0.001}}}
    return {"num_replicas": settings.ingresses, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0}}


def run(
    settings: Settings, started: Callable[[], None], described: Callable[[Backbone], object] = lambda _: None
) -> None:
    """Serve on the Ray cluster of this machine or of RAY_ADDRESS, or on one started here, until SIGTERM or ctrl-C.

    Args:
        started: called once it answers.
        described: called with what `describe` says, before anything starts.

    Raises:
        SMNError: as `describe`; Unavailable, the replicas did not start.
    """
    backbone = describe(settings)
    described(backbone)
    built = build(settings, backbone)
    stopping = threading.Event()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):  # only now: Ray sets a handler of its own, which aborts at SIGTERM
        signal.signal(number, lambda *_: stopping.set())
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        pool = ThreadPoolExecutor(1)  # a start that never ends can be stopped: with Ray its thread ends too
        starting = pool.submit(serve.run, built, name=NAME)
        starting.add_done_callback(lambda done: stopping.set() if done.exception() else started())
        stopping.wait()
        if starting.done():
            _require_started(starting)
        serve.delete(NAME)  # returns once what was in flight is answered
    finally:
        serve.shutdown()
        ray.shutdown()


def _require_started(starting: Future[Any]) -> None:
    """Raise Unavailable where Ray raised a RuntimeError because replicas did not start."""
    try:
        starting.result()
    except RuntimeError as error:
        raise Unavailable(f"the replicas did not start: {str(error).strip().splitlines()[-1]}") from error
