"""The Open Inference Protocol: tensors in JSON and behind it, versions, and what is no tensor of images."""

import json
import struct

import numpy as np
import pytest
from served import inputs
from spellings import BARE, PHOTOS

HEADER = "Inference-Header-Content-Length"


def of_bytes(**more):
    return {"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": BARE}], **more}


LENGTH = str(len(json.dumps(of_bytes())))


def infer(client, body, model="photos", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(f"/v2/models/{model}/infer", content=content, headers=headers)


def binary(client, header, behind, model="photos"):
    text = json.dumps(header).encode()
    return infer(client, text + behind, model, **{HEADER: str(len(text))})


def values(answer):
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert output["name"] == "embedding" and output["datatype"] == "FP32"
    return np.array(output["data"], np.float32).reshape(output["shape"])


def behind(answer):
    size = int(answer.headers[HEADER])
    (output,) = json.loads(answer.content[:size])["outputs"]
    rest = answer.content[size:]
    assert output["parameters"] == {"binary_data_size": len(rest)} and "data" not in output
    return np.frombuffer(rest, "<f4").reshape(output["shape"])


def test_base64_in_json_gives_embed_s_vectors(client, wanted):
    assert values(infer(client, of_bytes())).tobytes() == wanted().tobytes()
    answer = infer(client, of_bytes(id="7", parameters={"dimensions": 3, "normalize": True})).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "photos", "1")
    assert (
        np.array(answer["outputs"][0]["data"], np.float32).tobytes() == wanted(dimensions=3, normalize=True).tobytes()
    )


def test_bytes_behind_the_json_are_files_or_base64(client, wanted):
    for elements in (PHOTOS, [text.encode() for text in BARE]):
        raw = b"".join(struct.pack("<I", len(one)) + one for one in elements)
        tensor = {"name": "image", "shape": [2, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
        answer = binary(client, {"inputs": [tensor], "parameters": {"binary_data_output": True}}, raw)
        assert behind(answer).tobytes() == wanted().tobytes()
        shown = binary(client, {"inputs": [tensor], "outputs": [{"name": "embedding"}]}, raw)
        assert values(shown).tobytes() == wanted().tobytes()


def test_normalised_floats_go_in_json_or_behind_it(client, wanted):
    wanted()
    x = inputs(2)
    tensor = {"name": "image", "shape": list(x.shape), "datatype": "FP32"}
    expected = client.post(
        "/embed?mask=photos", content=npy_of(x), headers={"content-type": "application/x-npy"}
    ).json()["embeddings"]
    expected = np.array(expected, np.float32).tobytes()
    in_json = {"inputs": [{**tensor, "data": [float(value) for value in x.reshape(-1)]}]}
    assert values(infer(client, in_json)).tobytes() == expected
    spaced = json.dumps({"inputs": [{"data": x.reshape(-1).tolist(), **tensor}], "id": 'a "data": [1'}, indent=1)
    assert values(infer(client, spaced.encode())).tobytes() == expected
    raw = x.tobytes()
    header = {"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}
    assert values(binary(client, header, raw)).tobytes() == expected


def npy_of(x):
    import io

    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def test_a_model_and_its_versions_say_what_they_take(client, theta, wanted):
    first = wanted()
    client.put("/masks/photos", content=theta.mask(32).data)
    info = client.get("/v2/models/photos").json()
    assert info["versions"] == ["1", "2"] and info["inputs"][0]["name"] == "image"
    assert info["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 8]}]
    assert client.get("/v2/models/photos/versions/1").json()["versions"] == ["1"]
    assert client.get("/v2/models/photos/versions/1/ready").json() == {"name": "photos", "ready": True}
    old = client.post("/v2/models/photos/versions/1/infer", json=of_bytes())
    assert values(old).tobytes() == first.tobytes() != wanted().tobytes()
    assert old.json()["model_version"] == "1"
    root = client.get("/v2/models/test_vit").json()
    assert root["versions"] == [] and client.get("/v2/models/test_vit/ready").status_code == 200
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]


def tensor(**change):
    return {"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": BARE, **change}]}


X = [0.0] * (2 * 3 * 32 * 32)
BAD = {
    "another shape": (tensor(shape=[3]), 422, "elements"),
    "a shape of floats for texts": (tensor(shape=[2, 3, 32, 32]), 422, "expected [n]"),
    "a shape of texts for floats": (tensor(datatype="FP32", data=X), 422, "expected [n, 3, height, width]"),
    "another size": (tensor(datatype="FP32", shape=[2, 3, 31, 32], data=X[: 2 * 3 * 31 * 32]), 422, "expected float32"),
    "too few floats": (tensor(datatype="FP32", shape=[2, 3, 32, 32], data=X[1:]), 422, "its shape"),
    "nested floats": (tensor(datatype="FP32", shape=[2, 3, 32, 32], data=[X]), 422, "nested"),
    "texts as floats": (tensor(datatype="FP32", shape=[2, 3, 32, 32]), 422, "flat list of numbers"),
    "a null among floats": (tensor(datatype="FP32", shape=[2, 3, 32, 32], data=[None, *X[1:]]), 422, "numbers"),
    "a number that float32 has not": (
        tensor(datatype="FP32", shape=[2, 3, 32, 32], data=[1e39, *X[1:]]),
        422,
        "finite",
    ),
    "NaN": (tensor(datatype="FP32", shape=[2, 3, 32, 32], data=[float("nan"), *X[1:]]), 422, "numbers"),
    "a negative side": (tensor(shape=[-1]), 422, "side"),
    "another datatype": (tensor(datatype="INT64"), 422, "BYTES or FP32"),
    "another name": (tensor(name="x"), 422, "named 'image'"),
    "no input": ({"inputs": []}, 422, "named 'image'"),
    "two inputs": ({"inputs": tensor()["inputs"] * 2}, 422, "named 'image'"),
    "another output": ({**tensor(), "outputs": [{"name": "logits"}]}, 422, "'embedding'"),
    "text": (tensor(data=["a cat", BARE[0]]), 400, "embeds images"),
    "a URL": (tensor(data=["http://example.org/a.png", BARE[0]]), 400, "fetches nothing"),
    "numbers as texts": (tensor(data=[1, 2]), 422, "elements"),
    "no images": (tensor(shape=[0], data=[]), 400, "no image"),
    "too many": (tensor(shape=[10_000]), 413, "at most"),
    "too many dimensions": ({**tensor(), "parameters": {"dimensions": 9}}, 400, "9"),
    "dimensions of another type": ({**tensor(), "parameters": {"dimensions": True}}, 400, "parameters.dimensions"),
    "shared memory": (tensor(data=[], parameters={"shared_memory_region": "r"}), 400, "memory"),
    "bytes that are not there": (tensor(parameters={"binary_data_size": 5}), 400, "binary_data_size"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_tensor_of_images_is_refused_in_one_line(client, wanted, require_error, case):
    body, status, said = BAD[case]
    wanted()
    message = require_error(infer(client, body), status)
    assert said in message and "\n" not in message and len(message) < 300


def test_a_wrong_length_or_element_of_the_binary_extension_is_refused(client, wanted):
    wanted()
    raw = struct.pack("<I", 99) + b"abc"
    one = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    for answer, status, said in (
        (binary(client, {"inputs": [one]}, raw), 422, "ends behind"),
        (binary(client, {"inputs": [one]}, raw[:-1]), 400, "binary_data_size"),
        (binary(client, {"inputs": [{**one, "parameters": {}}]}, raw), 400, "no input names"),
        (infer(client, b"{}", **{HEADER: "99"}), 400, "beyond the body"),
        (infer(client, b"{}", **{HEADER: "-1"}), 400, "number of bytes"),
        (infer(client, b"{}", **{HEADER: "2"}), 400, "inputs"),
        (infer(client, json.dumps(of_bytes()).encode(), "nowhere", **{HEADER: LENGTH}), 404, "nowhere"),
    ):
        assert answer.status_code == status and said in answer.json()["error"], answer.text


def test_a_model_or_version_that_is_not_there_is_404(client, wanted, require_error):
    wanted()
    for path in ("nowhere", "photos@9", "photos/versions/9", "photos/versions/a", "test_vit/versions/1"):
        require_error(client.get(f"/v2/models/{path}"), 404, "not_found")
        require_error(client.get(f"/v2/models/{path}/ready"), 404, "not_found")
        require_error(client.post(f"/v2/models/{path}/infer", json=of_bytes()), 404, "not_found")
