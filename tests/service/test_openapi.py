"""schemathesis against the OpenAPI document: no server error, no answer outside of the document."""

import pytest
import schemathesis
from cascades import build, put_all
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import Theta

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """The schema of an application that runs, with masks and a cascade in it."""
    from fastapi.testclient import TestClient

    from service.app import create_app
    from service.registry.directory import DirectoryRegistry
    from service.settings import Settings

    theta = Theta()
    backbone = theta.backbone()
    registry = DirectoryRegistry(tmp_path_factory.mktemp("openapi"), backbone.fingerprint)
    registry.publish("masks", "m", theta.mask().data)
    app = create_app(Settings(slots=2), backbone, registry)
    with TestClient(app) as client:
        assert put_all(client, "c", build(theta)).status_code == 201
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


def name_what_is_there(case):
    """Put stored names where the case has made some up: those seldom get past 404."""
    for name, value in (("mask", "m"), ("cascade", "c")):
        if name in case.query:
            case.query[name] = value
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "c" if case.path.startswith("/cascades") else "m"
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "cascade:c"


def test_no_request_gets_a_server_error_or_an_answer_outside_of_the_document(document):
    # Not schemathesis' own parametrize: its pytest plugin does not know pytest 9.2 yet.
    asked = set()
    for operation in (result.ok() for result in document.get_all_operations()):

        @settings(
            max_examples=20,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), real=strategies.booleans())
        def check(case, real):
            if real:
                name_what_is_there(case)
            case.call_and_validate(checks=CHECKS)

        check()
        asked.add(operation.label)
    assert {"POST /embed", "PUT /masks/{name}", "POST /v1/embeddings", "GET /info"} <= asked


def test_every_route_and_parameter_is_described_and_every_json_body_has_an_example(document):
    operations = [
        (f"{method} {path}", operation)
        for path, methods in document.raw_schema["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 12
    for label, operation in operations:
        assert operation.get("description"), label
        assert all(parameter.get("description") for parameter in operation.get("parameters", [])), label
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        assert body is None or body["schema"].get("examples"), label
