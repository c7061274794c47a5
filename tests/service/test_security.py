"""Who may do what: keys, prefixes, open routes, and where the server refuses to start."""

from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from fastapi.routing import iter_route_contexts
from served import photo

from service.app import create_app
from service.registry.directory import DirectoryRegistry
from service.security import Name, Reader, own_name, own_name_to_change
from service.settings import Settings
from smn_core.errors import InvalidArgument

KEYS = {"api_keys": ["reader", "reader-a=customer-a."], "admin_keys": ["writer", "writer-a=customer-a."]}
OPEN = [
    "/livez",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/docs/swagger-ui.css",
    "/v2/health/live",
    "/v2/health/ready",
]
OPEN += ["/weaviate/m/.well-known/live", "/weaviate/m/.well-known/ready"]
READING = ["/info", "/masks", "/masks/m", "/masks/m/file", "/v1/models", "/v2", "/v2/models/m", "/weaviate/m/meta"]
CHANGING = [("PUT", "/masks/m"), ("PUT", "/masks/m/current"), ("DELETE", "/masks/m")]


@pytest.fixture
def guarded(serve, theta):
    client = serve(**KEYS)
    for name in ("m", "customer-a.x", "customer-b.x"):
        answer = client.put(f"/masks/{name}", content=theta.mask().data, headers=bearer("writer"))
        assert answer.status_code == 201
    return client


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def embed(client, key, mask=None):
    headers = {"Content-Type": "image/png", **bearer(key)}
    return client.post("/embed", params={"mask": mask} if mask else {}, content=photo(), headers=headers)


@pytest.mark.parametrize("path", OPEN)
def test_health_metrics_and_documentation_are_open(guarded, path):
    assert guarded.get(path).status_code in (200, 204)


@pytest.mark.parametrize(("method", "path"), [("GET", path) for path in READING] + CHANGING + [("POST", "/embed")])
def test_everything_else_needs_a_key(guarded, require_error, method, path):
    answer = guarded.request(method, path)
    require_error(answer, 401, "no_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    require_error(guarded.request(method, path, headers=bearer("wrong")), 401, "unknown_key")
    for header in ("writer", "Basic writer", "Bearer", "Bearer ", "bearer  "):
        require_error(guarded.request(method, path, headers={"Authorization": header}), 401)
    require_error(guarded.request(method, path, headers={"Authorization": b"Bearer \xff\xfe"}), 401)


def test_openai_calls_need_a_key_too(guarded, require_error):
    require_error(guarded.post("/v1/embeddings", json={"model": "m", "input": "x"}), 401, "no_key")


@pytest.mark.parametrize("path", READING)
def test_a_reading_key_reads(guarded, path):
    assert guarded.get(path, headers=bearer("reader")).status_code == 200


@pytest.mark.parametrize(("method", "path"), CHANGING)
def test_a_reading_key_changes_nothing(guarded, require_error, method, path):
    require_error(guarded.request(method, path, headers=bearer("reader")), 403, "read_only_key")
    assert guarded.get("/masks/m", headers=bearer("reader")).json()["current"]["version"] == 1


def test_both_kinds_of_key_embed(guarded):
    for key in ("reader", "writer"):
        assert embed(guarded, key, "m").status_code == 200


def test_a_bound_key_reaches_names_of_its_prefix_alone(guarded, theta, require_error):
    for key in ("reader-a", "writer-a"):
        assert embed(guarded, key, "customer-a.x").status_code == 200
        require_error(embed(guarded, key, "customer-b.x"), 403)
        require_error(guarded.get("/masks/customer-b.x", headers=bearer(key)), 403)
        require_error(guarded.get("/masks/customer-b.x/file", headers=bearer(key)), 403)
        body = {"model": "customer-b.x", "input": "aaaa"}
        require_error(guarded.post("/v1/embeddings", json=body, headers=bearer(key)), 403)
    data = theta.mask(2).data
    assert guarded.put("/masks/customer-a.x", content=data, headers=bearer("writer-a")).status_code == 201
    for method, path, body in [
        ("PUT", "/masks/customer-b.x", {"content": data}),
        ("PUT", "/masks/customer-b.x/current", {"json": {"version": 1}}),
        ("DELETE", "/masks/customer-b.x", {}),
    ]:
        require_error(guarded.request(method, path, headers=bearer("writer-a"), **body), 403)


def test_a_bound_key_sees_no_other_names(guarded, require_error):
    listed = guarded.get("/masks", headers=bearer("reader-a")).json()
    assert [item["name"] for item in listed["data"]] == ["customer-a.x"] and listed["next"] is None
    models = guarded.get("/v1/models", headers=bearer("reader-a")).json()
    assert [item["id"] for item in models["data"]] == ["test_vit", "customer-a.x"]
    for answer in (
        embed(guarded, "reader-a", "customer-a.y"),
        guarded.get("/masks/customer-a.y", headers=bearer("reader-a")),
    ):
        assert "customer-b" not in require_error(answer, 404, "not_found")


def test_keys_are_compared_in_constant_time_and_all_of_them(monkeypatch, guarded):
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    guarded.get("/info", headers=bearer("reader"))
    assert len(compared) == 4


def test_without_any_key_loopback_serves_everyone(client, theta):
    assert client.put("/masks/m", content=theta.mask().data).status_code == 201


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_another_address_than_loopback_wants_an_admin_key_or_a_word(theta, tmp_path, host):
    registry = DirectoryRegistry(tmp_path, theta.backbone().fingerprint)

    def create(**settings):
        return create_app(Settings(host=host, **settings), theta.backbone(), registry)

    with pytest.raises(InvalidArgument, match="SMN_ADMIN_KEYS"):
        create()
    with pytest.raises(InvalidArgument, match="--insecure"):
        create(api_keys=["reader"])


@pytest.mark.parametrize("given", [{"admin_keys": ["writer"]}, {"insecure": True}])
def test_with_an_admin_key_or_insecure_any_address_is_served(make_app, given):
    assert make_app(host="0.0.0.0", **given)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_key(make_app, host):
    assert make_app(host=host)


def test_an_empty_key_is_refused(make_app):
    with pytest.raises(InvalidArgument, match="empty"):
        make_app(admin_keys=["=customer-a."])


@pytest.mark.parametrize("key", ["abc=", "c2VjcmV0MQ==", "key=x=y.", "key=Upper", "key=.dot"])
def test_a_key_bound_to_what_no_name_starts_with_is_refused_at_the_start(make_app, key):
    """Else a key in base64 would be cut at its =, and the rest of it would be the key."""
    with pytest.raises(InvalidArgument, match="rand -hex"):
        make_app(admin_keys=[key])


def test_keys_are_not_shown_in_the_settings_words():
    assert "writer" not in repr(Settings(admin_keys=["writer"]))


def routes_of(app):
    """Every route of an application, those of included routers too."""
    return [route for route in iter_route_contexts(app.routes) if getattr(route, "dependant", None) is not None]


def unchecked_names(app):
    """Routes whose `{name}` is not taken by the one dependency that fits their method, and by it alone."""
    wrong = []
    for route in routes_of(app):
        if "{name}" not in route.path:
            continue
        check = own_name if route.methods <= {"GET", "HEAD"} else own_name_to_change
        takers, rest = [], [route.dependant]
        while rest:
            dependant = rest.pop()
            rest += dependant.dependencies
            takers += [dependant.call for field in dependant.path_params if field.name == "name"]
        if takers != [check]:
            wrong.append(f"{' '.join(route.methods)} {route.path}")
    return wrong


def test_every_name_in_a_path_is_checked_against_the_grammar_and_the_key(make_app):
    app = make_app()
    named = [route.path for route in routes_of(app) if "{name}" in route.path]
    assert len(named) >= 10 and {path.split("/")[1] for path in named} == {"masks", "cascades"}
    assert unchecked_names(app) == []


def test_a_route_that_takes_a_name_unchecked_or_as_a_reader_would_be_found():
    app = FastAPI()

    @app.get("/bare/{name}")
    async def bare(name: Name, caller: Reader): ...

    @app.delete("/reads/{name}")
    async def reads(name: Annotated[str, Depends(own_name)]): ...

    @app.get("/unread/{name}")
    async def unread(): ...

    @app.get("/checked/{name}")
    async def checked(name: Annotated[str, Depends(own_name)]): ...

    assert sorted(unchecked_names(app)) == ["DELETE /reads/{name}", "GET /bare/{name}", "GET /unread/{name}"]


@pytest.mark.parametrize("kind", ["masks", "cascades"])
@pytest.mark.parametrize(
    ("method", "rest"), [("PUT", ""), ("GET", ""), ("GET", "/file"), ("PUT", "/current"), ("DELETE", "")]
)
def test_what_is_no_name_is_refused_on_every_route_before_anything_is_read(client, require_error, kind, method, rest):
    for name in ("Upper", "m@1", "-dash", "a" * 129):
        message = require_error(client.request(method, f"/{kind}/{name}{rest}"), 400)
        assert "is not a name" in message
