"""Cascades over HTTP: served as computed by hand, among plain masks; uploaded whole or not at all; held fast."""

import hashlib
import io
import json
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import independent
import numpy as np
import pytest
import structlog
import uvicorn
from cascades import K, Q, build, put_all
from independent_client import NPY, as_npy
from served import Theta, eventually, inputs, photo, relative_error
from typer.testing import CliRunner

from benchmarks.redis_server import RedisServer
from service.client import Client

MODES = ("unconditional", "conditional")


@pytest.fixture(scope="module")
def cascade(theta):
    return build(theta, dataset="noise")


def embed(client, x, accept="application/json", **params):
    return client.post("/embed", content=as_npy(x), params=params, headers={"Content-Type": NPY, "Accept": accept})


def stored(client):
    return [client.get(f"/{kind}").json()["data"] for kind in ("masks", "cascades")]


# --- the right numbers


@pytest.mark.parametrize("mode", MODES)
def test_the_served_embedding_is_what_timm_scikit_learn_and_numpy_give(serve, cascade, mode):
    client, x = serve(), inputs(9, seed=3)
    assert put_all(client, "c", cascade).status_code == 201
    answer = embed(client, x, cascade="c", mode=mode)
    assert answer.status_code == 200, answer.text
    body, (wanted, chosen) = answer.json(), cascade.embed(x, mode)
    assert relative_error(np.array(body["embeddings"]), wanted) < 1e-4
    assert body["dimensions"] == Q and body["mask"] is None
    assert body["cascade"] == {
        "name": "c",
        "version": 1,
        "digest": cascade.digest,
        "mode": mode,
        "experts": (chosen + 1).tolist() if mode == "conditional" else None,
    }
    assert answer.headers["x-smn-digest"] == cascade.digest
    assert len(set(chosen.tolist())) > 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("maps", [("float32",), ("diagonal", None), (None, "int8", "float16")], ids=str)
def test_a_cascade_routes_and_fuses_mapped_embeddings(serve, theta, maps, mode):
    """Root and experts with maps, and only some of them: by timm, scikit-learn and numpy on what the maps give."""
    client, x = serve(), inputs(9, seed=3)
    mapped = build(theta, seed=2, maps=maps)
    put_all(client, "c", mapped)
    body, (wanted, chosen) = embed(client, x, cascade="c", mode=mode).json(), mapped.embed(x, mode)
    assert relative_error(np.array(body["embeddings"]), wanted) < 1e-4
    assert body["cascade"]["experts"] == ((chosen + 1).tolist() if mode == "conditional" else None)
    assert len(set(chosen.tolist())) > 1


def test_in_mixed_traffic_with_plain_masks_every_answer_is_its_own(serve, theta, cascade):
    """Four threads at once on cascades in both modes, plain masks and the root, with too few slots for all of them."""
    client = serve(slots=3, batch_size=16)
    put_all(client, "c", cascade)
    other = build(theta, seed=1, n_experts=2)
    put_all(client, "d", other)
    mask = theta.mask(seed=77)
    client.put("/masks/m", content=mask.data)
    xs = [inputs(1 + i % 4, seed=50 + i) for i in range(32)]
    wants = {
        "c/u": ({"cascade": "c", "mode": "unconditional"}, lambda x: cascade.embed(x, "unconditional")[0]),
        "c/c": ({"cascade": "c", "mode": "conditional"}, lambda x: cascade.embed(x, "conditional")[0]),
        "d/u": ({"cascade": "d", "mode": "unconditional"}, lambda x: other.embed(x, "unconditional")[0]),
        "d/c": ({"cascade": "d", "mode": "conditional"}, lambda x: other.embed(x, "conditional")[0]),
        "m": ({"mask": "m"}, lambda x: theta.embed(x, mask)),
        "root": ({}, theta.embed),
    }
    jobs = [(x, *wants[key]) for i, x in enumerate(xs) for key in (list(wants)[i % 6], list(wants)[(i + 1) % 6])]
    wanted = [by_hand(x) for x, _, by_hand in jobs]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda job: embed(client, job[0], NPY, **job[1]), jobs))
    for answer, want in zip(answers, wanted, strict=True):
        assert answer.status_code == 200, answer.text
        assert relative_error(np.load(io.BytesIO(answer.content)), want) < 1e-4


def test_an_unconditional_cascade_of_one_image_is_one_batch_of_all_its_masks(serve, cascade):
    client, batches = serve(slots=8), []
    put_all(client, "c", cascade)
    embed(client, inputs(1), cascade="c")
    engine = client.app.state.server.embedder.engine
    plain = engine.embed
    engine.embed = lambda x, segments: (
        batches.append([(s.mask, s.stop - s.start) for s in segments]) or plain(x, segments)
    )
    embed(client, inputs(1), cascade="c", mode="unconditional")
    assert batches == [[(mask.digest, 1) for mask in cascade.masks]]
    batches.clear()
    _, chosen = cascade.embed(inputs(1), "conditional")
    embed(client, inputs(1), cascade="c", mode="conditional")
    assert batches == [[(cascade.masks[0].digest, 1)], [(cascade.masks[1 + chosen[0]].digest, 1)]]


def test_a_conditional_cascade_loads_no_expert_that_no_row_goes_to(serve, cascade):
    client = serve(slots=8)
    put_all(client, "c", cascade)
    x = inputs(1)
    _, chosen = cascade.embed(x, "conditional")
    embed(client, x, cascade="c", mode="conditional")
    engine = client.app.state.server.embedder.engine
    assert [engine.ready(mask.digest) for mask in cascade.masks] == [True, *(j == chosen[0] for j in range(K))]


def test_timings_show_every_stage(serve, cascade):
    client = serve()
    put_all(client, "c", cascade)
    stages = {}
    for mode in MODES:
        header = embed(client, inputs(2), cascade="c", mode=mode).headers["server-timing"]
        stages[mode] = {part.partition(";dur=")[0] for part in header.split(", ")}
    common = {"load", "decode", "queue", "swap", "forward", "fuse", "total"}
    assert stages["unconditional"] == common
    second = {"route", "expert_load", "expert_queue", "expert_swap", "expert_forward"}
    assert stages["conditional"] == common | second


def test_dimensions_cut_first_and_normalize_then_gives_unit_length(serve, cascade):
    client, x = serve(), inputs(3)
    put_all(client, "c", cascade)
    wanted = cascade.embed(x, "unconditional")[0][:, :2]
    answer = embed(client, x, cascade="c", dimensions=2, normalize=True).json()
    assert answer["dimensions"] == 2
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert relative_error(np.array(answer["embeddings"]), wanted) < 1e-4


def test_openais_api_takes_a_cascade_as_a_model(serve, cascade):
    import base64

    client, file = serve(), photo(1)
    put_all(client, "c", cascade)
    assert "cascade:c" in [model["id"] for model in client.get("/v1/models").json()["data"]]
    body = {"model": "cascade:c", "input": base64.b64encode(file).decode(), "dimensions": 3}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    wanted = cascade.embed(cascade.theta.pixels(file), "unconditional")[0][:, :3]
    assert relative_error(np.array([answer.json()["data"][0]["embedding"]]), wanted) < 1e-4
    assert answer.headers["x-smn-digest"] == cascade.digest


def test_a_cascade_without_experts_serves_a_whitened_mask(serve, theta):
    mask = theta.mask(seed=5)
    tensors = {"mean": np.ones(8, "f4"), "components": np.eye(8, dtype="f4")[:3], "scale": np.full(3, 2, "f4")}
    fingerprint = independent.fingerprint(theta.plain, theta.model_json)
    data = independent.write_cascade(fingerprint, mask.digest, [], "pca", modes={"unconditional": tensors})
    client, x = serve(), inputs(2)
    client.put("/masks/m", content=mask.data)
    assert client.put("/cascades/w", content=data).status_code == 201
    found = np.array(embed(client, x, cascade="w").json()["embeddings"])
    assert relative_error(found, 2 * (theta.embed(x, mask)[:, :3] - 1)) < 1e-4


def test_preloading_a_cascade_loads_all_its_masks(make_app, cascade, theta, tmp_path):
    from fastapi.testclient import TestClient

    from service.registry.directory import DirectoryRegistry

    registry = DirectoryRegistry(tmp_path / "r", theta.backbone().fingerprint)
    for number, mask in enumerate(cascade.masks):
        registry.publish("masks", f"m{number}", mask.data)
    registry.publish("cascades", "c", cascade.data, needs=[mask.digest for mask in cascade.masks])
    with TestClient(make_app(registry=registry, preload=["cascade:c"])) as client:
        assert all(client.app.state.server.embedder.engine.ready(mask.digest) for mask in cascade.masks)


# --- versions


def test_an_upload_is_201_then_200_and_reads_back(client, cascade):
    assert put_all(client, "c", cascade).status_code == 201
    again = client.put("/cascades/c", content=cascade.data)
    assert again.status_code == 200
    assert again.json() == {
        "name": "c", "version": 1, "digest": cascade.digest, "bytes": len(cascade.data), "warnings": []
    }  # fmt: skip
    body = client.get("/cascades/c").json()
    assert body["current"] == {"version": 1, "digest": cascade.digest}
    assert body["metadata"]["dataset"] == "noise"
    assert (body["fusion"], body["mode"], body["modes"]) == ("pca", "unconditional", dict.fromkeys(MODES, Q))
    names = ["c.root", *(f"c.expert-{i}" for i in range(1, K + 1))]
    assert body["masks"] == [
        {"digest": mask.digest, "name": name, "version": 1} for mask, name in zip(cascade.masks, names, strict=True)
    ]
    file = client.get("/cascades/c/file")
    assert file.content == cascade.data and file.headers["etag"] == f'"{cascade.digest}"'
    assert [item["name"] for item in client.get("/cascades").json()["data"]] == ["c"]


def test_a_cascade_rolls_back_and_its_versions_go(client, theta, cascade, require_error):
    other = build(theta, seed=1)
    put_all(client, "c", cascade)
    put_all(client, "c", other)
    x = inputs(2)
    for version, wanted in ((1, cascade), (2, other)):
        assert client.put("/cascades/c/current", json={"version": version}).json()["digest"] == wanted.digest
        found = np.array(embed(client, x, cascade="c").json()["embeddings"])
        assert relative_error(found, wanted.embed(x, "unconditional")[0]) < 1e-4
        found = np.array(embed(client, x, cascade=f"c@{version}").json()["embeddings"])
        assert relative_error(found, wanted.embed(x, "unconditional")[0]) < 1e-4
    require_error(client.delete("/cascades/c", params={"version": 2}), 409, "conflict")
    assert client.delete("/cascades/c", params={"version": 1}).status_code == 204
    assert client.delete("/cascades/c").status_code == 204
    assert "no cascade is named c" in require_error(embed(client, x, cascade="c"), 404, "not_found")


def test_guards_hold_for_cascades_too(client, theta, cascade, require_error):
    put_all(client, "c", cascade)
    require_error(client.put("/cascades/c", content=cascade.data, headers={"If-None-Match": "*"}), 412)
    other = build(theta, seed=1)
    for i, mask in enumerate(other.masks):
        client.put(f"/masks/o{i}", content=mask.data)
    right = {"If-Match": f'"{cascade.digest}"'}
    assert client.put("/cascades/c", content=other.data, headers=right).status_code == 201
    require_error(client.put("/cascades/c", content=cascade.data, headers=right), 412, "precondition_failed")


def test_a_mask_that_a_cascade_needs_cannot_be_deleted_until_the_cascade_is(client, cascade, require_error):
    put_all(client, "c", cascade)
    said = require_error(client.delete("/masks/c.expert-2"), 409, "conflict")
    assert "is needed by: c" in said
    assert client.app.state.server.registry.collect(0) == []
    assert embed(client, inputs(1), cascade="c").status_code == 200
    client.delete("/cascades/c")
    assert client.delete("/masks/c.expert-2").status_code == 204
    gone = client.app.state.server.registry.collect(0)
    assert {cascade.digest, cascade.masks[2].digest} == set(gone)


def test_a_rollback_of_a_mask_does_not_change_a_cascade(client, theta, cascade):
    """It holds digests, not names."""
    put_all(client, "c", cascade)
    x = inputs(2)
    before = embed(client, x, cascade="c").json()["embeddings"]
    newer = theta.mask(seed=999)
    assert client.put("/masks/c.root", content=newer.data).status_code == 201
    assert client.put("/masks/c.expert-1", content=newer.data).status_code == 201
    assert embed(client, x, cascade="c").json()["embeddings"] == pytest.approx(np.array(before), rel=1e-5)
    client.put("/masks/c.root/current", json={"version": 1})
    assert embed(client, x, cascade="c").json()["embeddings"] == pytest.approx(np.array(before), rel=1e-5)


def test_cascades_live_in_redis_as_in_a_directory(make_app, theta, cascade, tmp_path, require_error):
    from fastapi.testclient import TestClient

    from service.registry.open import open_registry

    with RedisServer(tmp_path) as server:
        registry = open_registry(server.url, theta.backbone().fingerprint)
        with TestClient(make_app(registry=registry), raise_server_exceptions=False) as client:
            assert cascade.masks[0].digest in require_error(
                client.put("/cascades/c", content=cascade.data), 422, "missing_masks"
            )
            assert put_all(client, "c", cascade).status_code == 201
            x = inputs(3)
            for mode in MODES:
                found = np.array(embed(client, x, cascade="c", mode=mode).json()["embeddings"])
                assert relative_error(found, cascade.embed(x, mode)[0]) < 1e-4
            require_error(client.delete("/masks/c.root"), 409, "conflict")


# --- what is refused, and stores nothing


def test_a_cascade_whose_masks_are_missing_is_refused_by_their_digests(client, cascade, require_error):
    for number in (0, 2):
        client.put(f"/masks/m{number}", content=cascade.masks[number].data)
    said = require_error(client.put("/cascades/c", content=cascade.data), 422, "missing_masks")
    assert all(cascade.masks[i].digest in said for i in (1, 3))
    assert not any(cascade.masks[i].digest in said for i in (0, 2))
    assert stored(client)[1] == []
    registry = client.app.state.server.registry
    assert cascade.digest not in registry.collect(0)  # not even its bytes


def crafted(cascade, **changes):
    read = cascade.read
    metadata = read["metadata"]
    given = {
        "fingerprint": metadata["fingerprint"],
        "root": metadata["root"],
        "experts": read["experts"],
        "fusion": "pca",
        "modes": read["modes"],
        "router": read["router"],
    }
    return independent.write_cascade(**(given | changes))


def narrow(cascade):
    read = cascade.read
    cut = {
        mode: {**t, "mean": t["mean"][:-1], "components": t["components"][:, :-1]} for mode, t in read["modes"].items()
    }
    return crafted(cascade, modes=cut)


def wide_router(cascade):
    router = cascade.read["router"]
    wider = {**router, "mean": np.zeros(9, "f4"), "components": np.ones((3, 9), "f4")}
    return crafted(cascade, router=wider, fusion="concat", modes={})


BAD = {
    "another backbone": (lambda _: build(Theta(seed=9)).data, "wrong_backbone", "fingerprint"),
    "a fusion of the wrong width": (narrow, "invalid_cascade", "31 features"),
    "a router of the wrong width": (wide_router, "invalid_cascade", "9 features"),
    "a mask": (lambda c: c.masks[0].data, "invalid_cascade", "format is 'smn-mask/1'"),
    "nothing": (lambda _: b"", "invalid_cascade", "0 bytes"),
    "a flipped bit": (lambda c: c.data[:-3] + bytes([c.data[-3] ^ 4]) + c.data[-2:], "invalid_cascade", "damaged"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_cascade_that_is_none_is_refused_and_nothing_is_stored(client, cascade, require_error, what):
    make, code, said = BAD[what]
    for number, mask in enumerate(cascade.masks):
        client.put(f"/masks/m{number}", content=mask.data)
    before = stored(client)
    assert said in require_error(client.put("/cascades/c", content=make(cascade)), 422, code)
    assert stored(client) == before
    assert client.app.state.server.registry.collect(0) == []


def test_an_expert_of_another_backbone_cannot_be_uploaded_here_so_it_is_missing(client, cascade, require_error):
    other = Theta(seed=9).mask()
    for number, mask in enumerate(cascade.masks):
        client.put(f"/masks/m{number}", content=mask.data)
    require_error(client.put("/masks/o", content=other.data), 422, "wrong_backbone")
    data = crafted(cascade, experts=[other.digest, *cascade.read["experts"][1:]])
    assert other.digest in require_error(client.put("/cascades/c", content=data), 422, "missing_masks")
    assert stored(client)[1] == []


REQUESTS = {
    "more dimensions than the fusion": ({"cascade": "c", "dimensions": Q + 1}, 400, "too_many_dimensions", f"has {Q}"),
    "mask and cascade": ({"cascade": "c", "mask": "m"}, 400, "mask_and_cascade", "one of them"),
    "a mode without a cascade": ({"mode": "conditional"}, 400, "mode_without_cascade", "for a cascade"),
    "an unknown mode": ({"cascade": "c", "mode": "sideways"}, 400, "invalid_request", "mode"),
    "a mode that is not there": ({"cascade": "one", "mode": "conditional"}, 400, "no_such_mode", "no conditional mode"),
    "an unknown cascade": ({"cascade": "cc"}, 404, "not_found", "near it: c"),
    "a mask's name": ({"cascade": "c.root"}, 404, "not_found", "no cascade is named c.root"),
    "no name": ({"cascade": "C"}, 400, "invalid_argument", "not a name"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_that_cannot_be_is_refused(client, theta, cascade, require_error, what):
    params, status, code, said = REQUESTS[what]
    put_all(client, "c", cascade)
    put_all(client, "one", build(theta, modes=("unconditional",)))
    assert said in require_error(embed(client, inputs(1), **params), status, code)


def test_a_key_bound_to_names_builds_on_its_own_masks_alone(serve, cascade, require_error):
    client = serve(api_keys=["reader"], admin_keys=["boss", "anna=anna."])

    def put(path, data, key):
        return client.put(path, content=data, headers={"Authorization": f"Bearer {key}"})

    for number, mask in enumerate(cascade.masks):
        assert put(f"/masks/other{number}", mask.data, "boss").status_code == 201
    said = require_error(put("/cascades/anna.c", cascade.data, "anna"), 422, "missing_masks")
    assert "not among yours" in said and "other" not in said.replace("among", "")
    require_error(put("/cascades/other", cascade.data, "anna"), 403, "wrong_name")
    require_error(put("/cascades/anna.c", cascade.data, "reader"), 403, "read_only_key")
    for number, mask in enumerate(cascade.masks):
        assert put(f"/masks/anna.{number}", mask.data, "anna").status_code == 201
    assert put("/cascades/anna.c", cascade.data, "anna").status_code == 201
    places = client.get("/cascades/anna.c", headers={"Authorization": "Bearer anna"}).json()["masks"]
    assert [place["name"] for place in places] == [f"anna.{number}" for number in range(K + 1)]
    answer = client.post(
        "/embed",
        params={"cascade": "other"},
        content=as_npy(inputs(1)),
        headers={"Content-Type": NPY, "Authorization": "Bearer anna"},
    )
    require_error(answer, 403, "wrong_name")


def test_one_bad_image_fails_its_own_request_alone(client, cascade, require_error):
    put_all(client, "c", cascade)
    bad = client.post("/embed", params={"cascade": "c"}, content=b"no image", headers={"Content-Type": "image/png"})
    require_error(bad, 422, "invalid_image")
    assert embed(client, inputs(1), cascade="c", mode="conditional").status_code == 200


# --- the command


@pytest.fixture
def smn(make_app):
    """`smn(*words)`: the command against a server that listens, in a thread of this process."""
    import smn as command

    # Its log would stand among what the command prints.
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.__stderr__))
    server = uvicorn.Server(uvicorn.Config(make_app(), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        eventually(lambda: server.started, within_s=60)
        yield lambda *words: CliRunner().invoke(command.app, [*map(str, words), "--server", url])
        server.should_exit = True
        thread.join()
    structlog.reset_defaults()


def write_folder(folder, cascade):
    folder.mkdir()
    for number, mask in enumerate(cascade.masks):
        (folder / (f"expert-{number}.smn" if number else "root.smn")).write_bytes(mask.data)
    (folder / "cascade.safetensors").write_bytes(cascade.data)


def test_the_client_asks_for_one_version_of_a_cascade_whatever_is_pushed_meanwhile(real, theta, tmp_path):
    """Its masks and its own file are of the version it was told of; the width too, of which a space's id speaks."""
    fused = build(theta)
    files = {"wide": crafted(fused, fusion="concat", modes={}), "fused": fused.data}
    folders = {name: tmp_path / name for name in files}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "cascade.safetensors").write_bytes(files[name])
        for number, mask in enumerate(fused.masks):
            (folder / f"{number}.smn").write_bytes(mask.data)
    with Client(real.url) as client:
        client.push_cascade("asked", folders["wide"])
        client.push_cascade("asked", folders["fused"])
        space = client.space(cascade="asked@1", dimensions=Q)
        assert space.endswith(f":d{Q}"), "c@2 is no wider than that, c@1 is"
        assert (
            client.embed(np.zeros((1, 3, 32, 32), np.float32), cascade="asked@1", dimensions=Q, space=space).space
            == space
        )
        assert not client.space(cascade="asked", dimensions=Q).endswith(f":d{Q}")

        answered, sent = [], client._http.send

        def push_after_the_first(request, **more):
            answered.append(request.url.path)
            response = sent(request, **more)
            if len(answered) == 1:
                client._http.send = sent
                client.push_cascade("asked", folders["wide"])
                client._http.send = push_after_the_first
            return response

        client._http.send = push_after_the_first
        client.pull_cascade("asked", tmp_path / "back")
        assert (tmp_path / "back" / "cascade.safetensors").read_bytes() == fused.data


def test_push_list_pull_rollback_and_delete_work_on_cascades(smn, theta, tmp_path):
    cascade = build(theta, seed=4)
    write_folder(tmp_path / "flowers", cascade)
    pushed = smn("push", tmp_path / "flowers", "--name", "flowers", "--json")
    assert pushed.exit_code == 0, pushed.output
    assert json.loads(pushed.stdout)["digest"] == cascade.digest
    listed = json.loads(smn("list", "--cascades", "--json").stdout)
    assert "flowers" in [item["name"] for item in listed]
    masks = [item["name"] for item in json.loads(smn("list", "--json").stdout)]
    assert {"flowers.root", "flowers.expert-1", "flowers.expert-2", "flowers.expert-3"} <= set(masks)
    assert smn("pull", "cascade:flowers", "--out", tmp_path / "back").exit_code == 0
    names = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "flowers").iterdir()}
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "back").iterdir()} == names
    assert smn("rollback", "cascade:flowers", 1).exit_code == 0
    assert smn("delete", "cascade:flowers", "--yes").exit_code == 0
    assert "flowers" not in [item["name"] for item in json.loads(smn("list", "--cascades", "--json").stdout)]


def test_a_folder_that_lacks_a_mask_pushes_nothing(smn, theta, tmp_path):
    write_folder(tmp_path / "partial", build(theta, seed=6))
    (tmp_path / "partial" / "expert-2.smn").unlink()
    done = smn("push", tmp_path / "partial", "--name", "partial")
    assert done.exit_code != 0 and "lacks masks" in str(done.exception)
    assert "partial.root" not in [item["name"] for item in json.loads(smn("list", "--json").stdout)]


def test_readers_see_the_old_cascade_or_the_new_one_whole(serve, theta):
    """While one client pushes versions, another embeds: every answer is one of the versions, with its own masks."""
    client = serve(slots=8)
    versions = [build(theta, seed=i, n_experts=2) for i in (1, 2)]
    for version in versions:
        put_all(client, "c", version)
    x, done = inputs(1), threading.Event()
    wanted = {version.digest: version.embed(x, "conditional")[0] for version in versions}

    def push():
        for i in range(10):
            put_all(client, "c", versions[i % 2])
        done.set()

    pushing = threading.Thread(target=push)
    pushing.start()
    n = 0
    while not done.is_set() or n < 5:
        body = embed(client, x, cascade="c", mode="conditional").json()
        assert relative_error(np.array(body["embeddings"]), wanted[body["cascade"]["digest"]]) < 1e-4
        n += 1
    pushing.join()
