"""/masks: upload, guards, versions, rollback, deletion; and what is refused leaves no trace."""

import json

import independent
import numpy as np
import pytest
from independent_client import NPY, as_npy
from served import Theta, inputs, photo, relative_error


def put(client, name, mask, **headers):
    data = mask if isinstance(mask, bytes) else mask.data
    return client.put(f"/masks/{name}", content=data, headers={k.replace("_", "-"): v for k, v in headers.items()})


def current(client, name):
    return client.get(f"/masks/{name}").json()["current"]


def test_an_upload_answers_201_and_the_same_digest_again_200(client, theta):
    mask = theta.mask()
    first, again = put(client, "m", mask), put(client, "m", mask)
    assert (first.status_code, again.status_code) == (201, 200)
    wanted = {"name": "m", "version": 1, "digest": mask.digest, "bytes": len(mask.data), "warnings": []}
    assert first.json() == again.json() == wanted


def test_an_older_digest_again_is_a_new_version(client, theta):
    a, b = theta.mask(1), theta.mask(2)
    answers = [put(client, "m", mask) for mask in (a, b, a)]
    assert [answer.json()["version"] for answer in answers] == [1, 2, 3]
    assert [answer.status_code for answer in answers] == [201] * 3
    assert current(client, "m") == {"version": 3, "digest": a.digest}


def test_if_match_guards_an_upload_by_the_current_digest(client, theta, require_error):
    a, b, c = theta.mask(1), theta.mask(2), theta.mask(3)
    put(client, "m", a)
    assert put(client, "m", b, If_Match=f'"{a.digest}"').status_code == 201
    require_error(put(client, "m", c, If_Match=f'"{a.digest}"'), 412, "precondition_failed")
    require_error(put(client, "new", c, If_Match=f'"{a.digest}"'), 412)
    assert current(client, "m")["digest"] == b.digest


def test_if_none_match_guards_an_upload_to_new_names(client, theta, require_error):
    assert put(client, "m", theta.mask(1), If_None_Match="*").status_code == 201
    require_error(put(client, "m", theta.mask(2), If_None_Match="*"), 412, "precondition_failed")


@pytest.mark.parametrize(
    "guard", [{"If_Match": "sha256:00"}, {"If_Match": '"sha256:00"'}, {"If_Match": "*"}, {"If_None_Match": '"x"'}]
)
def test_a_guard_that_cannot_be_read_is_refused(client, theta, require_error, guard):
    require_error(put(client, "m", theta.mask(), **guard), 400, "invalid_guard")
    assert client.get("/masks").json()["data"] == []


def test_the_list_comes_in_pages_in_order_of_names(client, theta):
    mask = theta.mask()
    for name in ("c", "a", "b"):
        put(client, name, mask)
    first = client.get("/masks", params={"limit": 2}).json()
    assert [item["name"] for item in first["data"]] == ["a", "b"] and first["next"] == "b"
    second = client.get("/masks", params={"limit": 2, "after": first["next"]}).json()
    assert [item["name"] for item in second["data"]] == ["c"] and second["next"] is None
    assert second["data"][0] == {"name": "c", "current": {"version": 1, "digest": mask.digest}, "versions": 1}


def test_one_mask_reads_its_versions_metadata_and_density(client, theta):
    mask = theta.mask(1, density=0.8, objective="supervised", dataset="digits")
    put(client, "m", theta.mask(2))
    put(client, "m", mask)
    body = client.get("/masks/m").json()
    assert set(body) == {
        "name",
        "current",
        "versions",
        "aliases",
        "notes",
        "vectors",
        "space",
        "metadata",
        "density",
        "warnings",
    }
    assert body["current"] == {"version": 2, "digest": mask.digest}
    assert [set(version) for version in body["versions"]] == [
        {"version", "digest", "bytes", "uploaded", "vectors", "parent"}
    ] * 2
    assert body["metadata"]["objective"] == "supervised" and body["metadata"]["dataset"] == "digits"
    bits = independent.read(mask.data, theta.plain)["bits"]
    assert body["density"] == pytest.approx({name: on.mean() for name, on in bits.items()})


def test_metadata_say_whether_a_mask_has_a_map(client, theta):
    for kind, shown in (
        (None, None),
        ("diagonal", {"form": "diagonal", "precision": "float32", "bytes": 2 * 4 * 8}),
        ("int8", {"form": "matrix", "precision": "int8", "bytes": 2 * 4 * 8 + 8 * 8}),
    ):
        name = f"m-{kind}".lower()
        answer = put(client, name, theta.mask(3, with_affine=kind))
        assert answer.json()["warnings"] == []
        assert client.get(f"/masks/{name}").json()["metadata"]["affine"] == shown


def test_the_file_comes_back_byte_for_byte_with_its_digest_as_etag(client, theta):
    a, b = theta.mask(1), theta.mask(2)
    put(client, "m", a)
    put(client, "m", b)
    for params, mask in (({}, b), ({"version": 1}, a), ({"version": 2}, b)):
        answer = client.get("/masks/m/file", params=params)
        assert answer.content == mask.data and answer.headers["etag"] == f'"{mask.digest}"'
    for known in (f'"{b.digest}"', f'"x", W/"{b.digest}"', "*"):
        unchanged = client.get("/masks/m/file", headers={"If-None-Match": known})
        assert unchanged.status_code == 304 and unchanged.content == b""


def test_a_rollback_takes_effect_at_once_and_can_be_undone(client, theta):
    a, b, x = theta.mask(1), theta.mask(2), inputs()
    put(client, "m", a)
    put(client, "m", b)
    for version, mask in ((1, a), (2, b), (2, b)):
        answer = client.put("/masks/m/current", json={"version": version})
        assert answer.status_code == 200
        assert (answer.json()["version"], answer.json()["digest"]) == (version, mask.digest)
        found = client.post("/embed?mask=m", content=as_npy(x), headers={"Content-Type": NPY})
        assert found.headers["x-smn-digest"] == mask.digest
        assert relative_error(np.array(found.json()["embeddings"]), theta.embed(x, mask)) < 1e-4


@pytest.mark.parametrize(
    "body",
    [{"version": 0}, {"version": "x"}, {}, {"version": 1, "more": 1}, [], "1", {"version": True}, {"version": "1"}],
)
def test_a_rollback_to_no_version_number_is_refused(client, theta, require_error, body):
    put(client, "m", theta.mask())
    require_error(client.put("/masks/m/current", json=body), 400)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_rollback_that_is_not_said_to_be_json_is_415(client, theta, require_error, kind):
    put(client, "m", theta.mask())
    answer = client.put("/masks/m/current", content=b'{"version": 1}', headers={"Content-Type": kind})
    assert "application/json" in require_error(answer, 415, "unsupported_type")


def test_a_rollback_to_a_version_that_is_not_there_is_404(client, theta, require_error):
    put(client, "m", theta.mask())
    require_error(client.put("/masks/m/current", json={"version": 2}), 404, "not_found")
    require_error(client.put("/masks/n/current", json={"version": 1}), 404, "not_found")


def test_a_version_can_be_deleted_but_not_the_current_one_alone(client, theta, require_error):
    put(client, "m", theta.mask(1))
    put(client, "m", theta.mask(2))
    require_error(client.delete("/masks/m", params={"version": 2}), 409, "conflict")
    assert client.delete("/masks/m", params={"version": 1}).status_code == 204
    assert [version["version"] for version in client.get("/masks/m").json()["versions"]] == [2]
    require_error(client.delete("/masks/m", params={"version": 1}), 404)


def test_a_deleted_name_is_gone_and_its_numbers_are_not_used_again(client, theta, require_error):
    put(client, "m", theta.mask(1))
    put(client, "m", theta.mask(2))
    answer = client.delete("/masks/m")
    assert answer.status_code == 204 and answer.content == b""
    for path in ("/masks/m", "/masks/m/file"):
        require_error(client.get(path), 404, "not_found")
    require_error(client.delete("/masks/m"), 404, "not_found")
    assert put(client, "m", theta.mask(1)).json()["version"] == 3


@pytest.mark.parametrize("name", ["Upper", ".hidden", "a b", "-x", "a" * 129, "a@1", "é", "%00", "..%2fx"])
def test_a_name_outside_of_the_rule_is_refused(client, theta, name):
    assert put(client, name, theta.mask()).status_code in (400, 404, 405)
    assert client.get("/masks").json()["data"] == []


def bad_files(theta):
    data = theta.mask().data
    other = Theta("test_resnet").mask().data
    seeded = Theta(seed=9).mask().data
    pixels = independent.canonical({"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 32, 32]})
    flipped = [bytearray(data), bytearray(data)]
    no_map = theta.mask(affine={"mean": np.zeros(8, np.float32), "scale": np.zeros(8, np.float32)})
    flipped[0][-1] ^= 1
    flipped[1][data.index(b"fingerprint") + 20] ^= 1
    return {
        "another architecture": (other, "wrong_backbone"),
        "another backbone's weights": (seeded, "wrong_backbone"),
        "a flipped byte of bits": (bytes(flipped[0]), "invalid_mask"),
        "a flipped byte of metadata": (bytes(flipped[1]), "invalid_mask"),
        "truncated": (data[:-5], "invalid_mask"),
        "half": (data[: len(data) // 2], "invalid_mask"),
        "longer": (data + b"\0", "invalid_mask"),
        "empty": (b"", "invalid_mask"),
        "text": (b"not a mask", "invalid_mask"),
        "a pickle": (b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94.", "invalid_mask"),
        "a map whose scale is 0": (no_map.data, "invalid_mask"),
        "another mean": (theta.mask(preprocess=pixels).data, "wrong_backbone"),
    }


@pytest.mark.parametrize("which", bad_files(Theta()))
def test_a_file_that_is_no_mask_of_this_backbone_is_refused_and_leaves_no_trace(
    client, theta, require_error, tmp_path, which
):
    put(client, "m", theta.mask(5))

    def stored():
        files = [
            path for path in (tmp_path / "registry").rglob("*") if path.is_file() and path.parent.name != "servers"
        ]
        return {path: path.stat().st_mtime_ns for path in files}

    before = stored()
    data, code = bad_files(theta)[which]
    for name in ("m", "new"):
        require_error(put(client, name, data), 422, code)
    assert stored() == before
    assert [item["name"] for item in client.get("/masks").json()["data"]] == ["m"]
    assert current(client, "m")["version"] == 1


def test_a_guard_that_fails_leaves_the_names_as_they_were(client, theta):
    put(client, "m", theta.mask(1))
    put(client, "m", theta.mask(2), If_None_Match="*")
    assert len(client.get("/masks/m").json()["versions"]) == 1


def test_another_size_in_training_is_a_warning_and_not_an_error(client, theta):
    served = client.get("/info").json()["preprocess"]
    mask = theta.mask(preprocess=independent.canonical({**served, "input_size": [3, 64, 64]}))
    written = put(client, "m", mask)
    assert written.status_code == 201
    assert any("input_size" in warning for warning in written.json()["warnings"])
    answer = client.post("/embed?mask=m", content=as_npy(inputs()), headers={"Content-Type": NPY}).json()
    assert any("input_size" in warning for warning in answer["warnings"])


def test_metadata_that_json_cannot_say_does_not_break_reading(client, theta):
    mask = theta.mask(preprocess=json.dumps({"crop_pct": float("nan")}), metrics='{"knn":NaN}')
    if put(client, "m", mask).status_code == 201:
        assert client.get("/masks/m").status_code == 200


def test_an_upload_larger_than_any_mask_is_refused(serve, theta, require_error):
    require_error(put(serve(max_body_bytes=1024), "m", theta.mask().data + bytes(1024)), 413, "body_too_large")


def test_a_mask_that_contradicts_its_fingerprint_is_refused(client, theta, require_error):
    """The fingerprint covers the model's name: both cannot be true."""
    other = theta.mask()
    claims = other.data.replace(b"test_vit", b"test_vat", 1)
    assert claims != other.data
    answer = client.put("/masks/two-faced", content=claims)
    assert answer.status_code == 422, answer.text


def test_the_backbones_own_name_is_not_a_masks(client, theta, require_error):
    """/v1/embeddings could not tell them apart."""
    answer = client.put(f"/masks/{theta.name}", content=theta.mask().data)
    require_error(answer, 400, "reserved_name")


def test_a_blob_that_is_gone_is_damage_not_an_unknown_mask(serve, theta, require_error, tmp_path):
    mask = theta.mask(seed=77)
    serve().put("/masks/lost", content=mask.data)
    blobs = [path for path in (tmp_path / "registry").rglob("*") if path.name.startswith(mask.digest[7:])]
    assert blobs
    for blob in blobs:
        blob.unlink()
    fresh = serve()
    answers = [
        fresh.post("/embed", params={"mask": "lost"}, content=photo(), headers={"Content-Type": "image/png"}),
        fresh.get("/masks/lost"),
        fresh.get("/masks/lost/file"),
    ]
    for answer in answers:
        assert "upload the file again" in require_error(answer, 503, "unavailable")
    assert fresh.put("/masks/lost", content=mask.data).status_code == 200
    assert fresh.get("/masks/lost").status_code == 200


@pytest.mark.parametrize("metrics", ["fast", '{"verdict":{"answer":"adopt","reason":"It helps."}}'])
def test_a_mask_that_helps_or_says_nothing_of_it_has_no_warning(client, theta, metrics):
    assert put(client, "m", theta.mask(metrics=metrics)).json()["warnings"] == []
    assert client.get("/masks/m").json()["warnings"] == []


def test_a_verdict_of_leave_it_warns_at_upload_and_wherever_the_mask_is_used(client, theta):
    metrics = json.dumps({"verdict": {"answer": "leave it", "reason": "Views agree less."}})
    written = put(client, "m", theta.mask(metrics=metrics))
    assert written.status_code == 201
    assert written.json()["warnings"] == ["verdict: leave it. Views agree less."]
    assert client.get("/masks/m").json()["warnings"] == written.json()["warnings"]
    answer = client.post("/embed", params={"mask": "m"}, content=photo(), headers={"Content-Type": "image/png"})
    assert answer.json()["warnings"] == written.json()["warnings"]
