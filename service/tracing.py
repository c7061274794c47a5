"""Traces by FastAPI's own OpenTelemetry: one span a request, with its id and its stages, to an OTLP collector.

The interface of OpenTelemetry comes with FastAPI; what makes and sends spans is the extra `otel`.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

from service.record import Record
from smn_core.errors import InvalidArgument

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

PROBES = ("/livez", "/readyz", "/metrics")


def provider_of(endpoint: str | None) -> TracerProvider | None:
    """A provider that sends spans to `endpoint`/v1/traces, in batches; None without one. The caller shuts it down.

    Its resource, sampler and headers are OpenTelemetry's own variables: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER,
    OTEL_EXPORTER_OTLP_HEADERS.

    Raises:
        InvalidArgument: no URL, or the extra `otel` is not installed.
    """
    if endpoint is None:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidArgument(f"--otlp-endpoint {endpoint!r}: write http://host:4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidArgument(
            "--otlp-endpoint (SMN_OTLP_ENDPOINT) needs the extra otel: pip install '.[service,otel]'"
        ) from error
    provider = TracerProvider(resource=Resource({"service.name": "smn"}).merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    return provider


def config_of(provider: trace.TracerProvider | None) -> TelemetryConfig:
    """FastAPI's configuration: spans of requests go to this provider, whatever OpenTelemetry's variables ask for."""
    return {
        "tracer_provider": provider,
        "tracing": provider is not None,
        "operation_spans": False,
        "metrics": False,  # Prometheus has them
        "logs": False,  # structlog writes them
        "auto_configure": False,
        "exclude": _is_probe,
    }


def annotate(record: Record) -> None:
    """Write a request's id, stages in seconds and facts to its span, if it has one that has not ended."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attribute("smn.request_id", record.request_id)
    span.set_attributes({f"smn.{name}_s": seconds for name, seconds in record.stages.items()})
    span.set_attributes({f"smn.{name}": _plain(value) for name, value in record.facts.items() if value is not None})


def _is_probe(scope: MutableMapping[str, Any]) -> bool:
    return scope["path"] in PROBES


def _plain(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)
