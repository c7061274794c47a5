"""Metrics, logs and request ids. One record of a request feeds its log line, its metrics and its headers."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.batcher import BatchDone
from service.record import Record
from service.registry.watch import Health
from service.tracing import PROBES, annotate

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OUTCOMES = {2: "ok", 4: "client_error", 5: "server_error"}


class Instruments:
    """Makes Prometheus' instruments, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def counter(self, name: str, told: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, told, labels, registry=self.registry)

    def gauge(self, name: str, told: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, told, labels, registry=self.registry)

    def histogram(
        self, name: str, told: str, buckets: Sequence[float] = SECONDS, labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(name, told, labels, buckets=buckets, registry=self.registry)


class Metrics:
    """What Prometheus reads, in seconds and bytes. No label can take an unbounded number of values."""

    def __init__(self, make: Instruments | None = None) -> None:
        make = make or Instruments()
        self.registry = make.registry
        self.requests = make.counter("smn_request_total", "Requests by route and outcome.", ["route", "outcome"])
        self.request_seconds = make.histogram("smn_request_seconds", "From request to answer.", labels=["route"])
        self.queue_seconds = make.histogram("smn_queue_seconds", "From enqueued to first batch.")
        self.decode_seconds = make.histogram("smn_decode_seconds", "Reading and decoding a request.")
        self.decode_killed = make.counter("smn_decode_killed_total", "Decodes ended by a limit, or nobody waited.")
        self.swap_seconds = make.histogram("smn_swap_seconds", "Writing slots, by batch with swaps.")
        self.forward_seconds = make.histogram("smn_forward_seconds", "Forwards, by batch.")
        self.load_seconds = make.histogram("smn_load_seconds", "A cold mask: fetch and check.")
        self.batch_images = make.histogram("smn_batch_images", "Images of a batch.", IMAGES)
        self.batch_masks = make.histogram("smn_batch_masks", "Distinct masks of a batch.", IMAGES)
        self.swaps = make.counter("smn_swap_total", "Slots written.")
        self.queue_images = make.gauge("smn_queue_images", "Images admitted and not answered.")
        self.registry_up = make.gauge("smn_registry_up", "1 where the registry answers, 0 where it is away.")
        self.registry_writable = make.gauge(
            "smn_registry_writable", "1 where a write to the registry succeeds, else 0."
        )
        self.masks_resident = make.gauge("smn_masks_resident", "Masks held, by tier.", ["tier"])
        self.masks_bytes = make.gauge("smn_masks_bytes", "Memory of masks, by tier.", ["tier"])
        self.cascade_bytes = make.gauge("smn_cascade_bytes", "Of smn_masks_bytes of the host: cascades, without masks.")

    def batch(self, done: BatchDone) -> None:
        """Count a batch that has run. Called on the engine's thread."""
        self.batch_images.observe(done.images)
        self.batch_masks.observe(done.masks)
        self.forward_seconds.observe(done.forward_s)
        if done.swaps:
            self.swaps.inc(done.swaps)
            self.swap_seconds.observe(done.swap_s)

    def hold(self, state: State) -> None:
        """Set the gauges to what the engines hold now."""
        self.masks_resident.labels("slot").set(state.resident_masks)
        self.masks_resident.labels("host").set(state.shelves)
        self.masks_bytes.labels("theta").set(state.theta_bytes)
        self.masks_bytes.labels("slot").set(state.slot_bytes)
        self.masks_bytes.labels("host").set(state.mask_bytes)
        self.cascade_bytes.set(state.cascade_bytes)

    def registry_is(self, health: Health) -> None:
        """Set the gauges to what is known of the registry."""
        self.registry_up.set(health.away is None)
        self.registry_writable.set(health.unwritable is None)

    def text(self) -> bytes:
        return generate_latest(self.registry)


@dataclass(frozen=True)
class State:
    """What engines hold: slots, masks in them, bytes of theta, slots and masks, and masks in host memory.

    `mask_bytes` are those of the host, with cascades; `cascade_bytes` are the cascades alone, without their masks.
    `forms` says in which way each kind of the model's layers runs.
    """

    device: str
    replicas: int = 1
    slots: int = 0
    resident_masks: int = 0
    theta_bytes: int = 0
    slot_bytes: int = 0
    mask_bytes: int = 0
    cascade_bytes: int = 0
    shelves: int = 0
    forms: Mapping[str, str] = field(default_factory=dict)


class Observed:
    """Middleware: gives every request a record and its id, and at its end writes one log line and counts it once."""

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
        status, method = 500, scope["method"]
        if method == "HEAD":  # every GET route answers it: FastAPI's routes alone do not
            scope = {**scope, "method": "GET"}

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = record.request_id
                if record.stages:
                    headers["Server-Timing"] = record.server_timing()
                annotate(record)
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._finish(scope, method, record, status)

    def _finish(self, scope: Scope, method: str, record: Record, status: int) -> None:
        annotate(record)  # again: a request that failed has sent no answer, and so was not annotated above
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
            method=method,
            route=route,
            status=status,
            total_ms=round(1e3 * seconds, 3),
            **stages,
            **record.facts,
        )


def log_health(health: Health) -> None:
    """One line when the registry goes, comes back, or takes no changes any more."""
    log = structlog.get_logger("smn.registry")
    up, writable = health.away is None, health.unwritable is None
    say = log.info if up and writable else log.warning
    say("registry", up=up, writable=writable, reason=health.away or health.unwritable)


def configure_logs(log_format: str) -> None:
    """Send structlog's events to stdout, one line each: JSON, or coloured text for people."""
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
