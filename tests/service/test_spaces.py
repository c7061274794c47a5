"""Every answer names its space, a request's promise about it is kept, and what moves a name's meaning says so."""

import base64
import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import independent
import numpy as np
import pytest
from cascades import build, put_all
from fastapi.testclient import TestClient
from independent_client import NPY, as_npy
from served import inputs, photo

PNG = "image/png"
CODES = {"float32": "F32", "float16": "F16", "int8": "I8"}


@pytest.fixture
def cascade(theta):
    return build(theta)


def put(client, name, mask):
    answer = client.put(f"/masks/{name}", content=mask if isinstance(mask, bytes) else mask.data)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def embed(client, body=None, content_type=PNG, headers=None, **params):
    sent = {"Content-Type": content_type, **(headers or {})}
    return client.post("/embed", content=photo() if body is None else body, params=params, headers=sent)


def space_of(client, **params):
    """What an answer says, in every form alike."""
    plain, npy = embed(client, **params), embed(client, headers={"Accept": NPY}, **params)
    assert plain.status_code == 200, plain.text
    assert plain.headers["x-smn-space"] == npy.headers["x-smn-space"] == plain.json()["space"]
    return plain.json()["space"]


# --- the id, computed as DESIGN says it from /info and the file, with nothing of the project


def hash_of_tensors(sha, tensors, prefixes):
    for name in sorted(name for name in tensors if name.startswith(prefixes)):
        array = tensors[name]
        sha.update(f"{name}|{CODES[array.dtype.name]}|{list(array.shape)}|".encode() + array.tobytes())
    return sha.hexdigest()


def vectors_by_hand(data, plain):
    bits, (_, tensors) = independent.read(data, plain)["bits"], independent.parse(data)
    packed = [np.packbits(np.asarray(on).reshape(-1), bitorder="little").tobytes() for on in bits.values()]
    assert list(bits) == list(independent.layout(plain))
    return hash_of_tensors(hashlib.sha256(b"".join(packed)), tensors, ("state.", "affine."))


def space_by_hand(info, vectors, *shape):
    assert all(isinstance(side, int) for side in info["preprocess"]["input_size"])
    floats = [*info["preprocess"]["mean"], *info["preprocess"]["std"], info["preprocess"]["crop_pct"]]
    assert all(isinstance(number, float) for number in floats)
    pixels = hashlib.sha256(json.dumps(info["preprocess"], sort_keys=True, separators=(",", ":")).encode())
    inner = "root" if vectors is None else vectors[:16]
    return ":".join(["smn1", info["fingerprint"][:16], inner, pixels.hexdigest()[:8], *shape])


@pytest.mark.parametrize("with_affine", [None, "diagonal", "int8"])
def test_a_client_computes_the_id_from_info_and_the_file_alone(client, theta, with_affine):
    mask = theta.mask(3, with_affine=with_affine)
    put(client, "m", mask)
    info = client.get("/info").json()
    wanted = space_by_hand(info, vectors_by_hand(mask.data, theta.plain))
    assert space_of(client, mask="m") == client.get("/masks/m").json()["space"] == wanted
    assert space_of(client) == info["space"] == space_by_hand(info, None)


def test_a_mask_the_same_with_a_head_and_in_another_codec_share_a_space_and_weights(client, theta):
    head = (np.ones((2, 8), np.float32), np.zeros(2, np.float32), ["a", "b"])
    for name, given in {"raw": {"codec": "raw"}, "zstd": {}, "head": {"head": head}, "text": {"dataset": "x"}}.items():
        put(client, name, theta.mask(4, density=0.5, **given))
    assert len({space_of(client, mask=name) for name in ("raw", "zstd", "head", "text")}) == 1
    memory = client.app.state.server.embedder.engine.memory()
    assert (memory.prepared_masks, memory.resident_masks) == (4, 1)
    put(client, "on", theta.mask(0, density=2.0))
    assert space_of(client, mask="on") == space_of(client)


def test_both_modes_of_a_cascade_are_spaces_that_a_client_computes(client, theta, cascade):
    put_all(client, "c", cascade)
    metadata, tensors = independent.parse(cascade.data)
    lines = [*(vectors_by_hand(mask.data, theta.plain) for mask in cascade.masks), metadata["fusion"], ""]
    sha = hashlib.sha256("".join(f"{line}\n" for line in lines).encode())
    vectors, info = hash_of_tensors(sha, tensors, ("fusion.", "router.")), client.get("/info").json()
    wanted = {mode: space_by_hand(info, vectors, mode) for mode in ("unconditional", "conditional")}
    assert {mode: space_of(client, cascade="c", mode=mode) for mode in wanted} == wanted
    body = client.get("/cascades/c").json()
    assert (body["spaces"], body["space"]) == (wanted, wanted["unconditional"])
    assert space_of(client, cascade="c", dimensions=2, normalize=True) == f"{wanted['unconditional']}:d2:l2"


def test_a_cut_and_unit_length_stand_in_the_id_where_they_change_something(client, theta):
    put(client, "m", theta.mask(5))
    space = space_of(client, mask="m")
    assert space_of(client, mask="m", dimensions=3) == f"{space}:d3"
    assert space_of(client, mask="m", dimensions=8) == space
    assert space_of(client, mask="m", dimensions=3, normalize=True) == f"{space}:d3:l2"
    assert space_of(client, normalize=True).endswith(":l2")


def test_openais_answers_and_models_name_the_space_and_errors_name_none(client, theta, cascade):
    mask = theta.mask(6)
    put(client, "m", mask)
    put_all(client, "c", cascade)
    uri = f"data:image/png;base64,{base64.b64encode(photo()).decode()}"
    for model, params in (("test_vit", {}), ("m", {"mask": "m"}), ("cascade:c", {"cascade": "c"})):
        wanted = space_of(client, **params)
        answer = client.post("/v1/embeddings", json={"model": model, "input": uri, "dimensions": 2})
        assert answer.json()["space"] == answer.headers["x-smn-space"] == f"{wanted}:d2"
        listed = {entry["id"]: entry["space"] for entry in client.get("/v1/models").json()["data"]}
        assert client.get(f"/v1/models/{model}").json()["space"] == listed[model] == wanted
    assert "x-smn-space" not in embed(client, mask="nowhere").headers
    assert "x-smn-space" not in embed(client, b"no image", mask="m").headers


def test_versions_of_records_from_before_spaces_are_told_from_their_files(client, theta, cascade):
    registry = client.app.state.server.registry
    registry.publish("masks", "old", theta.mask(3).data)
    put(client, "new", theta.mask(3))
    for mask in cascade.masks:
        registry.publish("masks", f"of-{mask.digest[7:20]}", mask.data)
    registry.publish("cascades", "old", cascade.data, needs=[mask.digest for mask in cascade.masks])
    put_all(client, "new", cascade)
    listed = {entry["id"]: entry["space"] for entry in client.get("/v1/models").json()["data"]}
    assert listed["old"] == listed["new"] == space_of(client, mask="old")
    assert listed["cascade:old"] == listed["cascade:new"] == space_of(client, cascade="old")
    assert client.get("/cascades/old").json()["vectors"] == client.get("/cascades/new").json()["vectors"]


def test_a_list_of_models_reads_few_files_and_the_next_one_others(make_app, theta, monkeypatch):
    from service.routes import openai

    monkeypatch.setattr(openai, "FILES_READ", 2)
    with TestClient(make_app()) as client:
        for seed in range(3):
            client.app.state.server.registry.publish("masks", f"old-{seed}", theta.mask(seed).data)
        unknown = [sum(entry["space"] is None for entry in client.get("/v1/models").json()["data"]) for _ in range(2)]
    assert unknown == [1, 0]


# --- the promise


def test_a_promise_is_kept_by_query_and_header_and_another_space_is_412_before_the_body_is_read(
    client, theta, require_error
):
    put(client, "m", theta.mask(1))
    space, root = space_of(client, mask="m"), space_of(client)
    assert embed(client, mask="m", space=space).status_code == 200
    assert embed(client, mask="m", space=space, headers={"X-SMN-Expect-Space": space}).status_code == 200
    for body in (photo(), b"no image"):
        message = require_error(embed(client, body, mask="m", space=root), 412, "other_space")
        assert space in message and root in message
        require_error(embed(client, body, mask="m", headers={"X-SMN-Expect-Space": root}), 412, "other_space")
    require_error(embed(client, mask="m", space=space, dimensions=2), 412, "other_space")
    two = embed(client, mask="m", space=space, headers={"X-SMN-Expect-Space": root})
    require_error(two, 400, "two_spaces")
    uri = f"data:image/png;base64,{base64.b64encode(photo()).decode()}"
    asked = {"json": {"model": "m", "input": uri}}
    assert client.post("/v1/embeddings", params={"space": space}, **asked).status_code == 200
    require_error(client.post("/v1/embeddings", params={"space": root}, **asked), 412, "other_space")
    require_error(client.post("/v1/embeddings", headers={"X-SMN-Expect-Space": root}, **asked), 412, "other_space")


def test_while_a_name_is_pushed_over_every_answer_is_in_the_space_asked_for_or_412(client, theta):
    """benchmarks/spaces.py has the same with 64 clients and 20,000 requests."""
    x, masks = inputs(1, seed=2), [theta.mask(seed, density=0.7) for seed in (1, 2)]
    body, vectors, spaces = as_npy(x), [], []
    for mask in masks:
        put(client, "m", mask)
        spaces.append(space_of(client, mask="m"))
        vectors.append(theta.embed(x, mask)[0])
    done, counts, lock = threading.Event(), {200: 0, 412: 0}, threading.Lock()

    def push():
        for turn in range(10_000):
            if done.is_set():
                return
            if turn % 3:
                put(client, "m", masks[turn % 2])
            else:
                assert client.put("/masks/m/current", json={"version": 1 + turn % 2}).status_code == 200

    def ask(number):
        wanted = number % 2
        answer = embed(client, body, NPY, mask="m", space=spaces[wanted])
        with lock:
            counts[answer.status_code] += 1
        if answer.status_code == 200:
            assert answer.headers["x-smn-space"] == spaces[wanted]
            assert answer.headers["x-smn-digest"] == masks[wanted].digest
            assert np.allclose(answer.json()["embeddings"][0], vectors[wanted], atol=1e-4)
        else:
            assert answer.json()["error"]["code"] == "other_space"

    with ThreadPoolExecutor(9) as pool:
        pushing = pool.submit(push)
        try:
            list(pool.map(ask, range(400)))
        finally:
            done.set()
        pushing.result()
    assert counts[200] > 20 and counts[412] > 20, counts


# --- what moves a name's meaning says so


def warnings_of(answer):
    assert answer.status_code in (200, 201), answer.text
    return answer.json()["warnings"]


def test_an_upload_a_rollback_and_a_moved_alias_say_that_vectors_are_in_another_space(client, theta):
    a, b, again = theta.mask(1), theta.mask(2), theta.mask(1, dataset="x")
    moved = "vectors embedded through m@{} are in another space".format
    assert put(client, "m", a)["warnings"] == []
    assert put(client, "m", again)["warnings"] == []  # the same bits in another file
    assert put(client, "m", b)["warnings"] == [moved(2)]
    assert put(client, "m", b)["warnings"] == []
    assert warnings_of(client.put("/masks/m/current", json={"version": 1})) == [moved(3)]
    assert warnings_of(client.put("/masks/m/current", json={"version": 2})) == []
    alias = "/masks/m/aliases/champion"
    assert warnings_of(client.put(alias, json={"version": 1})) == []
    assert warnings_of(client.put(alias, json={"version": 2})) == []
    assert warnings_of(client.put(alias, json={"version": 3})) == [moved(2)]


def test_a_cascade_that_only_changes_its_default_mode_moves_the_space_of_its_name(client, theta, cascade):
    put_all(client, "c", cascade)
    metadata, tensors = independent.parse(cascade.data)
    metadata = {**metadata, "mode": "conditional"}
    metadata.pop("content")
    data = independent.container(metadata | {"content": independent.content(metadata, tensors)}, tensors)
    moved = "vectors embedded through c@1 are in another space"
    assert warnings_of(client.put("/cascades/c", content=data)) == [moved]
    assert warnings_of(client.put("/cascades/c/current", json={"version": 2})) == []
    moved = "vectors embedded through c@2 are in another space"
    assert warnings_of(client.put("/cascades/c/current", json={"version": 1})) == [moved]


def test_where_the_old_file_cannot_be_read_the_answer_says_that_it_is_not_known(client, theta, tmp_path):
    registry = client.app.state.server.registry
    registry.publish("masks", "m", theta.mask(1).data)
    for blob in (tmp_path / "registry").glob("*/blobs/sha256/*"):
        blob.write_bytes(b"damaged")
    (warning,) = put(client, "m", theta.mask(2))["warnings"]
    assert warning.startswith("whether vectors embedded through m@1 are in this space is not known")
