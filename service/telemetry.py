"""Metrics, logs and request ids. One record of a request feeds its log line, its metrics and its headers."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.batcher import BatchDone
from service.tracing import PROBES, annotate

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OUTCOMES = {2: "ok", 4: "client_error", 5: "server_error"}


class Metrics:
    """What Prometheus reads; base units, no label without a bound."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on = self.registry
        self.requests = Counter(
            "smn_request_total", "Requests by route and outcome.", ["route", "outcome"], registry=on
        )
        self.request_seconds = Histogram(
            "smn_request_seconds", "From request to answer.", ["route"], buckets=SECONDS, registry=on
        )
        self.queue_seconds = Histogram(
            "smn_queue_seconds", "From enqueued to first batch.", buckets=SECONDS, registry=on
        )
        self.decode_seconds = Histogram(
            "smn_decode_seconds", "Reading and decoding a request.", buckets=SECONDS, registry=on
        )
        self.swap_seconds = Histogram(
            "smn_swap_seconds", "Writing slots, by batch with swaps.", buckets=SECONDS, registry=on
        )
        self.forward_seconds = Histogram("smn_forward_seconds", "Forwards, by batch.", buckets=SECONDS, registry=on)
        self.load_seconds = Histogram("smn_load_seconds", "A cold mask: fetch and check.", buckets=SECONDS, registry=on)
        self.batch_images = Histogram("smn_batch_images", "Images of a batch.", buckets=IMAGES, registry=on)
        self.batch_masks = Histogram("smn_batch_masks", "Distinct masks of a batch.", buckets=IMAGES, registry=on)
        self.swaps = Counter("smn_swap_total", "Slots written.", registry=on)
        self.queue_images = Gauge("smn_queue_images", "Images admitted and not answered.", registry=on)
        self.registry_up = Gauge("smn_registry_up", "1 where the registry answers, 0 where it is away.", registry=on)
        self.masks_resident = Gauge("smn_masks_resident", "Masks held, by tier.", ["tier"], registry=on)
        self.masks_bytes = Gauge("smn_masks_bytes", "Memory of masks, by tier.", ["tier"], registry=on)

    def batch(self, done: BatchDone) -> None:
        """A batch ran; called on the engine's thread."""
        self.batch_images.observe(done.images)
        self.batch_masks.observe(done.masks)
        self.forward_seconds.observe(done.forward_s)
        if done.swaps:
            self.swaps.inc(done.swaps)
            self.swap_seconds.observe(done.swap_s)

    def text(self) -> bytes:
        return generate_latest(self.registry)


@dataclass
class Record:
    """One request as it is told: stages in seconds, what it asked for, how it ended."""

    request_id: str
    began: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)

    def server_timing(self) -> str:
        """The `Server-Timing` header: milliseconds by stage, and the total so far."""
        stages = {**self.stages, "total": time.perf_counter() - self.began}
        return ", ".join(f"{name};dur={1e3 * seconds:.3f}" for name, seconds in stages.items())


class Observed:
    """Middleware: a record for every request, its id in and out, one log line and one count at its end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._log = structlog.get_logger("smn.request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        record = Record(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope.setdefault("state", {})["record"] = record
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = record.request_id
                if record.stages:
                    headers["Server-Timing"] = record.server_timing()
                annotate(record)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._finish(scope, record, status)

    def _finish(self, scope: Scope, record: Record, status: int) -> None:
        annotate(record)  # once more: a failure has sent nothing yet
        route = getattr(scope.get("route"), "path", "none")
        seconds = time.perf_counter() - record.began
        self._metrics.requests.labels(route, OUTCOMES.get(status // 100, "other")).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if route in PROBES:
            return
        stages = {f"{name}_ms": round(1e3 * s, 3) for name, s in record.stages.items()}
        self._log.info(
            "request",
            request_id=record.request_id,
            method=scope["method"],
            route=route,
            status=status,
            total_ms=round(1e3 * seconds, 3),
            **stages,
            **record.facts,
        )


def configure_logs(log_format: str) -> None:
    """structlog to stdout, one line an event: JSON, or coloured text for people."""
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
