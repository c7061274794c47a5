"""Aliases, holds by name and what tenants may see, vectors, deadlines of uploads: over HTTP."""

import fcntl
import hashlib

import independent
import numpy as np
import pytest
from cascades import build, put_all
from served import inputs

from smn_core.errors import InvalidArgument
from smn_core.vectors import vectors_of_root

NPY = "application/x-npy"


def as_npy(array):
    import io

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def embed(client, **params):
    return client.post("/embed", params=params, content=as_npy(inputs(1)), headers={"Content-Type": NPY})


@pytest.fixture(scope="module")
def cascade(theta):
    return build(theta, n_experts=2)


def vectors_by_hand(data, shapes):
    """Of a mask's file without state and map, from its bytes."""
    read = independent.parse(data)[1]
    import zstandard

    packed = zstandard.ZstdDecompressor().decompress(read["bits"].tobytes())
    return hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize("kind", ["masks", "cascades"])
def test_an_alias_is_a_reference_everywhere_until_it_is_deleted(client, theta, cascade, require_error, kind):
    put_all(client, "c", cascade)
    other = build(theta, seed=1, n_experts=2)
    for number, mask in enumerate(other.masks):
        client.put(f"/masks/o{number}", content=mask.data)
    name = "c.root" if kind == "masks" else "c"
    first = cascade.masks[0] if kind == "masks" else cascade
    assert client.put(f"/{kind}/{name}", content=(theta.mask(9) if kind == "masks" else other).data).status_code == 201
    done = client.put(f"/{kind}/{name}/aliases/champion", json={"version": 1})
    assert (done.status_code, done.json()) == (201, {"name": name, "alias": "champion", "version": 1, "warnings": []})
    answer = embed(client, **{kind[:-1]: f"{name}@champion"})
    assert answer.headers["X-SMN-Digest"] == first.digest
    assert answer.json()[kind[:-1]]["version"] == 1
    assert client.get(f"/{kind}/{name}").json()["aliases"] == {"champion": 1}
    said = require_error(client.delete(f"/{kind}/{name}", params={"version": 1}), 409, "conflict")
    assert f"{name}@champion" in said
    assert client.put(f"/{kind}/{name}/aliases/champion", json={"version": 2}).status_code == 200
    assert embed(client, **{kind[:-1]: f"{name}@champion"}).headers["X-SMN-Digest"] != first.digest
    assert client.delete(f"/{kind}/{name}/aliases/champion").status_code == 204
    require_error(client.delete(f"/{kind}/{name}/aliases/champion"), 404, "not_found")
    assert "has no alias champion" in require_error(embed(client, **{kind[:-1]: f"{name}@champion"}), 404, "not_found")


@pytest.mark.parametrize("alias", ["v3", "sha256", "Champion", "3", "a_b", "a" * 33, "%23x", "-a"])
def test_what_is_no_alias_is_refused(client, theta, require_error, alias):
    client.put("/masks/m", content=theta.mask().data)
    require_error(client.put(f"/masks/m/aliases/{alias}", json={"version": 1}), 400, "invalid_argument")


def test_an_alias_of_a_version_that_is_not_there_or_of_no_name_is_not_found(client, theta, require_error):
    client.put("/masks/m", content=theta.mask().data)
    require_error(client.put("/masks/m/aliases/a", json={"version": 2}), 404, "not_found")
    require_error(client.put("/masks/n/aliases/a", json={"version": 1}), 404, "not_found")
    require_error(client.put("/masks/m/aliases/a", json={"version": "1"}), 400)
    require_error(client.put("/masks/m/aliases/a", json={}), 400)
    assert client.get("/masks/m").json()["aliases"] == {}


def test_an_alias_needs_a_key_that_may_change_and_is_for_the_name(serve, theta, require_error):
    client = serve(api_keys=["reader"], admin_keys=["boss", "anna=anna."])

    def call(method, path, key, **more):
        return client.request(method, path, headers={"Authorization": f"Bearer {key}"}, **more)

    call("PUT", "/masks/m", "boss", content=theta.mask().data)
    path = "/masks/m/aliases/champion"
    require_error(call("PUT", path, "reader", json={"version": 1}), 403, "read_only_key")
    require_error(call("PUT", path, "anna", json={"version": 1}), 403, "wrong_name")
    assert call("PUT", path, "boss", json={"version": 1}).status_code == 201
    require_error(call("DELETE", path, "reader"), 403, "read_only_key")


def test_pinned_and_preloaded_aliases_are_followed(make_app, theta, tmp_path):
    from fastapi.testclient import TestClient
    from served import eventually

    from service.registry.directory import DirectoryRegistry

    registry = DirectoryRegistry(tmp_path / "r", theta.backbone().fingerprint)
    masks = [theta.mask(seed) for seed in (1, 2)]
    for mask in masks:
        registry.publish("masks", "m", mask.data)
    registry.set_alias("masks", "m", "champion", 1)
    with TestClient(make_app(registry=registry, preload=["m@champion"], pin=["m@champion"])) as client:
        engine = client.app.state.server.embedder.engine
        assert engine.ready(masks[0].digest) and not engine.ready(masks[1].digest)
        client.put("/masks/m/aliases/champion", json={"version": 2})
        eventually(lambda: engine.ready(masks[1].digest))


def test_what_makes_vectors_is_told_with_every_version(client, theta, cascade):
    mask = theta.mask(3)
    client.put("/masks/m", content=mask.data)
    client.put("/masks/m", content=theta.mask(4).data)
    client.put("/masks/m/current", json={"version": 1})
    found = client.get("/masks/m").json()
    assert found["vectors"] == found["versions"][0]["vectors"] == vectors_by_hand(mask.data, None)
    assert found["versions"][1]["vectors"] != found["vectors"]
    client.put("/masks/on", content=theta.mask(0, density=2.0).data)
    assert client.get("/masks/on").json()["vectors"] == vectors_of_root(theta.backbone().layout)
    put_all(client, "c", cascade)
    metadata, tensors = independent.parse(cascade.data)
    text = "".join(f"{vectors_by_hand(m.data, None)}\n" for m in cascade.masks) + f"{metadata['fusion']}\n\n"
    sha = hashlib.sha256(text.encode())
    codes = {"float32": "F32", "int8": "I8"}
    for name in sorted(tensors):
        sha.update(f"{name}|{codes[tensors[name].dtype.name]}|{list(tensors[name].shape)}|".encode())
        sha.update(tensors[name].tobytes())
    assert client.get("/cascades/c").json()["vectors"] == sha.hexdigest()


def test_a_version_of_a_record_without_vectors_gets_them_when_it_is_read(client, theta):
    mask = theta.mask(3)
    client.app.state.server.registry.publish("masks", "old", mask.data)
    assert client.get("/masks/old").json()["vectors"] == vectors_by_hand(mask.data, None)


def test_a_tenant_deletes_its_mask_whatever_another_builds_on_the_same_file(serve, cascade, require_error):
    """B uploads A's files, builds a cascade on them, and drops its own copy: that is B's affair."""
    client = serve(admin_keys=["boss", "anna=anna.", "bert=bert."])

    def call(method, path, key, **more):
        return client.request(method, path, headers={"Authorization": f"Bearer {key}"}, **more)

    for number, mask in enumerate(cascade.masks):
        for tenant in ("anna", "bert"):
            assert call("PUT", f"/masks/{tenant}.{number}", tenant, content=mask.data).status_code == 201
    assert call("PUT", "/cascades/bert.c", "bert", content=cascade.data).status_code == 201
    said = require_error(call("DELETE", "/masks/bert.0", "bert"), 409, "conflict")
    assert "is needed by: bert.c" in said
    for number in range(len(cascade.masks)):
        assert call("DELETE", f"/masks/anna.{number}", "anna").status_code == 204
    places = call("GET", "/cascades/bert.c", "bert").json()["masks"]
    assert [place["name"] for place in places] == [f"bert.{number}" for number in range(len(cascade.masks))]


def test_a_409_names_no_cascade_that_the_caller_may_not_see(serve, cascade, require_error):
    client = serve(admin_keys=["boss", "anna=anna."])

    def call(method, path, key, **more):
        return client.request(method, path, headers={"Authorization": f"Bearer {key}"}, **more)

    for number, mask in enumerate(cascade.masks):
        call("PUT", f"/masks/anna.{number}", "anna", content=mask.data)
    assert call("PUT", "/cascades/secret", "boss", content=cascade.data).status_code == 201
    said = require_error(call("DELETE", "/masks/anna.0", "anna"), 409, "conflict")
    assert "secret" not in said and "needed by another name" in said
    assert "secret" in require_error(call("DELETE", "/masks/anna.0", "boss"), 409, "conflict")


def test_a_cascade_keeps_the_version_that_it_was_uploaded_on(client, theta, cascade, require_error):
    put_all(client, "c", cascade)
    assert client.put("/masks/c.root", content=theta.mask(9).data).status_code == 201
    client.put("/masks/copy", content=cascade.masks[0].data)
    require_error(client.delete("/masks/c.root", params={"version": 1}), 409, "conflict")
    assert client.delete("/masks/copy").status_code == 204


@pytest.mark.parametrize("given", [
    {"admin_keys": ["k=a.", "k=b."]}, {"admin_keys": ["k"], "api_keys": ["k=a."]}, {"api_keys": ["k=a.", "k=b."]},
])  # fmt: skip
def test_one_key_with_two_prefixes_is_refused_at_the_start(make_app, given):
    with pytest.raises(InvalidArgument, match="given twice"):
        make_app(**given)
    make_app(admin_keys=["k=a.", "k=a."], api_keys=["k=a."])


def test_an_upload_that_waits_for_the_lock_ends_with_its_deadline_and_holds_up_nobody(
    client, theta, require_error, tmp_path
):
    client.put("/masks/m", content=theta.mask().data)
    (lock,) = (tmp_path / "registry").glob("*/lock")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for _ in range(2):
            answer = client.put("/masks/n", content=theta.mask(2).data, headers={"X-Timeout-Ms": "300"})
            require_error(answer, 504, "deadline")
        for path in ("/readyz", "/metrics", "/masks", "/masks/m"):
            assert client.get(path).status_code == 200
    assert client.put("/masks/n", content=theta.mask(2).data).status_code == 201


def test_a_damaged_record_leaves_the_list_and_no_answer_has_a_path(client, theta, require_error, tmp_path):
    for name in ("a", "b"):
        client.put(f"/masks/{name}", content=theta.mask().data)
    (record,) = (tmp_path / "registry").glob("*/masks/a.json")
    record.write_text("")
    assert [item["name"] for item in client.get("/masks").json()["data"]] == ["b"]
    require_error(client.get("/masks/none"), 404)
    for answer in (
        client.get("/masks/a"),
        embed(client, mask="a"),
        client.put("/masks/a", content=theta.mask().data),
        client.delete("/masks/a"),
    ):
        said = require_error(answer, 503, "unavailable")
        assert "smn gc --check" in said and str(tmp_path) not in said and ".json" not in said


def test_everything_that_a_cascade_keeps_counts_against_the_budget(client, cascade):
    put_all(client, "c", cascade)
    before = client.get("/info").json()["memory_bytes"]["masks"]
    assert "smn_cascade_bytes 0.0" in client.get("/metrics").text
    embed(client, cascade="c")
    server = client.app.state.server
    held = server.embedder.library._shelves[cascade.digest]
    assert held.bytes >= sum(array.nbytes for array in independent.parse(cascade.data)[1].values())
    found = client.get("/info").json()["memory_bytes"]
    assert found["masks"] >= before + held.bytes
    assert found["cascades"] == held.bytes
    assert f"smn_cascade_bytes {float(held.bytes)}" in client.get("/metrics").text
