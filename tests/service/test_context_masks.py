"""Masks of codec context at a server: decoded off the event loop, checked before they are stored, served as others."""

import independent
import numpy as np
import pytest
from independent_client import NPY, as_npy
from served import inputs, relative_error


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
