"""Traces by OpenTelemetry: what a span says, where it goes, and what happens without the extra."""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from independent_client import NPY, IndependentClient, as_npy
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from served import ServerProcess, inputs

from benchmarks.redis_server import free_port
from service.settings import Settings
from service.tracing import config_of, provider_of
from smn_core.errors import InvalidArgument

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def spans(serve):
    """`spans(method, path, **of the client)`: the spans of one request to an application that traces."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    client = serve(tracer_provider=provider)

    def ask(method, path, **given):
        exporter.clear()
        answer = client.request(method, path, **given)
        return answer, exporter.get_finished_spans()

    return ask


def test_a_span_carries_the_request_id_the_stages_and_the_digest(spans, theta):
    mask = theta.mask(1)
    assert spans("PUT", "/masks/m", content=mask.data)[0].status_code == 201
    headers = {"Content-Type": NPY, "X-Request-ID": "mine-1", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    answer, (span,) = spans("POST", "/embed?mask=m", content=as_npy(inputs(2)), headers=headers)
    assert answer.status_code == 200
    told = dict(span.attributes)
    assert span.name == "POST /embed" and told["http.route"] == "/embed" and told["http.response.status_code"] == 200
    assert told["smn.request_id"] == "mine-1" and told["smn.digest"] == mask.digest and told["smn.images"] == 2
    stages = [told[f"smn.{stage}_s"] for stage in ("queue", "decode", "swap", "forward", "load")]
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in stages)
    assert told["smn.forward_s"] > 0 and told["smn.decode_s"] > 0
    assert sum(stages) < 2 * (span.end_time - span.start_time) / 1e9
    assert format(span.context.trace_id, "032x") == TRACE and format(span.parent.span_id, "016x") == PARENT


def test_a_refused_request_has_its_span_and_its_id_too(spans):
    answer, (span,) = spans("POST", "/embed?mask=none", content=as_npy(inputs()), headers={"Content-Type": NPY})
    assert answer.status_code == 404 and span.attributes["http.response.status_code"] == 404
    assert span.attributes["smn.request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_are_not_traced(spans, path):
    answer, found = spans("GET", path)
    assert answer.status_code == 200 and found == ()


def test_without_an_endpoint_nothing_is_traced_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    config = config_of(provider_of(Settings().otlp_endpoint))
    assert not (config["tracing"] or config["metrics"] or config["logs"] or config["auto_configure"])


def test_without_the_extra_an_endpoint_is_one_error_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(
        InvalidArgument, match=r"SMN_OTLP_ENDPOINT\) needs the extra otel: pip install '\.\[service,otel\]'"
    ):
        provider_of("http://127.0.0.1:4318")


def test_an_endpoint_that_is_no_url_is_refused():
    with pytest.raises(InvalidArgument, match="write http://host:4318"):
        provider_of("collector")


class Collector:
    """An OTLP/HTTP collector that keeps the spans it gets."""

    def __enter__(self):
        self.spans = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                if handler.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                assert handler.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
                    self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
                handler.send_response(200)
                handler.send_header("Content-Length", "0")
                handler.end_headers()

            def log_message(handler, *_):
                """Not on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_a_server_sends_its_spans_to_the_collector_at_the_latest_when_it_ends(theta, tmp_path):
    flags = [*theta.save(tmp_path), "--registry", tmp_path / "registry"]
    with Collector() as collector:
        environment = {"SMN_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "smn-test"}
        with ServerProcess(flags, tmp_path, environment) as server:
            assert IndependentClient(server.url).embed(as_npy(inputs()), NPY, NPY).status == 200
            assert server.stop() == 0
    ((service, span),) = collector.spans
    assert (service, span.name) == ("smn-test", "POST /embed")
    assert {"smn.request_id", "smn.forward_s"} <= {attribute.key for attribute in span.attributes}


def test_a_collector_that_is_away_holds_nobody_up():
    provider = provider_of(f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    provider.get_tracer("test").start_span("lost").end()
    assert time.monotonic() - began < 1
    provider.shutdown()
    assert time.monotonic() - began < 15  # less than Docker and Kubernetes leave after the drain
