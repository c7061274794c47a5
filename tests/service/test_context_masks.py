"""Masks of codec context at a server: decoded off the event loop, checked before they are stored, served as others."""

import independent
import numpy as np
import pytest
from independent_client import NPY, as_npy
from served import inputs, relative_error

from service.client import Client
from service.transfer import pull_mask


def put(client, name, data):
    return client.put(f"/masks/{name}", content=data)


def with_stream(mask, change):
    """The file with another stream, and with the checksum of what it then holds."""
    metadata, tensors = independent.parse(mask.data)
    tensors = {**tensors, "bits": np.frombuffer(change(tensors["bits"].tobytes()), np.uint8)}
    return independent.container({**metadata, "content": independent.content(metadata, tensors)}, tensors)


def test_it_is_uploaded_read_and_served_as_the_same_mask_in_zstd(client, theta):
    mask, same = theta.mask(1, codec="context"), theta.mask(1)
    for name, data in (("coded", mask.data), ("plain", same.data)):
        assert put(client, name, data).status_code == 201
    coded, plain = (client.get(f"/masks/{name}").json() for name in ("coded", "plain"))
    assert coded["density"] == plain["density"] and coded["vectors"] == plain["vectors"]
    assert client.get("/masks/coded/file").content == mask.data
    x = inputs(3)
    answer = client.post("/embed?mask=coded", content=as_npy(x), headers={"Content-Type": NPY}).json()
    assert relative_error(np.array(answer["embeddings"]), theta.embed(x, mask)) < 1e-4


DAMAGED = {
    "empty": lambda _: b"",
    "unknown strengths": lambda stream: b"\x09" + stream[1:],
    "cut": lambda stream: stream[:-2],
    "more behind": lambda stream: stream + b"\0",
    "noise": lambda stream: b"\0" + bytes(np.random.default_rng(0).bytes(len(stream))),
    "longer than any mask": lambda stream: stream + bytes(100_000),
    "all OFF": lambda stream: b"\0" + bytes(len(stream)),
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_stream_is_a_422_and_leaves_no_trace(client, theta, require_error, change):
    data = with_stream(theta.mask(1, codec="context"), change)
    require_error(put(client, "m", data), 422, "invalid_mask")
    assert client.get("/masks").json()["data"] == []


def test_a_mask_of_other_weights_is_refused(client, theta, require_error):
    other = type(theta)(theta.name, seed=1, args=theta.args)
    require_error(put(client, "m", other.mask(codec="context").data), 422, "wrong_backbone")


@pytest.fixture
def family(theta):
    """A parent, and two masks that are coded against it."""
    parent = theta.mask(5)
    return parent, theta.mask(6, parent=parent), theta.mask(7, parent=parent)


def test_a_child_is_served_as_the_same_mask_without_a_parent(client, theta, family):
    parent, child, _ = family
    assert put(client, "root", parent.data).status_code == 201
    assert put(client, "child", child.data).status_code == 201
    assert put(client, "plain", theta.mask(6).data).status_code == 201
    coded, plain = (client.get(f"/masks/{name}").json() for name in ("child", "plain"))
    for same in ("density", "vectors", "space"):
        assert coded[same] == plain[same]
    assert coded["versions"][0]["parent"] == {"digest": parent.digest, "name": "root", "version": 1}
    assert plain["versions"][0]["parent"] is None
    x = inputs(3)
    answer = client.post("/embed?mask=child", content=as_npy(x), headers={"Content-Type": NPY}).json()
    assert relative_error(np.array(answer["embeddings"]), theta.embed(x, child)) < 1e-4


def test_a_child_without_its_parent_is_a_422_that_names_it(client, family, require_error):
    parent, child, _ = family
    assert parent.digest in require_error(put(client, "child", child.data), 422, "missing_masks")
    assert client.get("/masks").json()["data"] == []


def test_a_child_of_a_child_is_a_422(client, theta, family, require_error):
    parent, child, _ = family
    put(client, "root", parent.data)
    put(client, "child", child.data)
    metadata, tensors = independent.parse(child.data)
    metadata["parent"] = child.digest
    data = independent.container({**metadata, "content": independent.content(metadata, tensors)}, tensors)
    assert "no parent may be" in require_error(put(client, "m", data), 422, "invalid_mask")


def test_a_parent_stays_while_a_child_needs_it(client, theta, family, require_error):
    parent, child, other = family
    for name, mask in (("root", parent), ("a", child), ("b", other)):
        put(client, name, mask.data)
    put(client, "root", theta.mask(8).data)
    assert "is needed by: a, b" in require_error(client.delete("/masks/root?version=1"), 409, "conflict")
    assert "is needed by: a, b" in require_error(client.delete("/masks/root"), 409, "conflict")
    for name in ("a", "b"):
        assert client.delete(f"/masks/{name}").status_code == 204
    assert client.delete("/masks/root?version=1").status_code == 204


def test_a_name_goes_with_its_child_and_its_parent(client, family):
    parent, child, _ = family
    for mask in (parent, child):
        put(client, "m", mask.data)
    assert client.delete("/masks/m").status_code == 204


def test_push_and_pull_bring_the_parent(real, family, tmp_path):
    parent, child, _ = family
    (tmp_path / "here").mkdir()
    for name, mask in (("root", parent), ("child", child)):
        (tmp_path / "here" / f"{name}.smn").write_bytes(mask.data)
    there = tmp_path / "m.smn"
    with Client(real.url) as client:
        assert client.push("kin", tmp_path / "here" / "child.smn")["digest"] == child.digest
        assert client.mask("kin.parent")["current"]["digest"] == parent.digest
        assert pull_mask(client, "kin", None, there, overwrite=False) == [
            (there, len(child.data)),
            (tmp_path / "m.parent.smn", len(parent.data)),
        ]
    assert there.read_bytes() == child.data and (tmp_path / "m.parent.smn").read_bytes() == parent.data
