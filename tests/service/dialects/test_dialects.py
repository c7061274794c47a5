"""Each dialect gives the vectors of /embed to the last bit, whatever the spelling of the image."""

import base64
import json

import numpy as np
import pytest
from spellings import BARE, PHOTOS, URIS, floats, part

from service.rounding import round_to

INPUTS = {
    "data URIs": URIS,
    "bare base64": BARE,
    "base64 with line breaks, without padding": [base64.encodebytes(data).decode().rstrip("=\n") for data in PHOTOS],
    "image": [{"image": text} for text in BARE],
    "image, with a blank text": [{"image": text, "text": ""} for text in URIS],
    "image with bytes": [{"image": {"bytes": text}} for text in BARE],
    "image with url": [{"image": {"url": text}} for text in URIS],
    "parts": [part(text) for text in URIS],
    "contents": [{"content": [part(text)]} for text in URIS],
    "image_url as a text": [{"type": "image_url", "image_url": text} for text in URIS],
    "image_base64": [{"content": [{"type": "image_base64", "image_base64": text}]} for text in BARE],
    "contents with a blank text": [{"content": [{"type": "text", "text": " "}, part(text)]} for text in URIS],
}


def openai(client, **body):
    answer = client.post("/v1/embeddings", json={"model": "photos", **body})
    assert answer.status_code == 200, answer.text
    return [row["embedding"] for row in answer.json()["data"]]


def bits(rows):
    return np.array(rows, np.float32).tobytes()


@pytest.mark.parametrize("form", INPUTS)
def test_every_spelling_of_an_image_is_the_same_image(client, wanted, form):
    assert bits(openai(client, input=INPUTS[form])) == bits(wanted())
    assert bits(cohere(client, inputs=INPUTS[form])["float"]) == bits(wanted())


def test_one_value_is_a_list_of_one(client, wanted):
    for value in (URIS[0], {"image": BARE[0]}):
        assert bits(openai(client, input=value)) == bits(wanted(PHOTOS[:1]))


def test_a_conversation_with_one_image_is_one_vector(client, wanted):
    system = {"role": "system", "content": [{"type": "text", "text": ""}]}
    for messages in (
        [{"role": "user", "content": [part(URIS[1])]}],
        [system, {"role": "user", "content": [part(URIS[1])]}],
        [{"role": "user", "content": URIS[1]}],
    ):
        assert bits(openai(client, messages=messages)) == bits(wanted(PHOTOS[1:]))


def test_normalized_is_embed_s_normalize_after_the_cut(client, wanted):
    found = openai(client, input=URIS, normalized=True, dimensions=3)
    assert bits(found) == bits(wanted(normalize=True, dimensions=3))


@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("dimensions", [None, 3])
def test_numbers_of_every_kind_are_those_of_the_float_vectors(client, wanted, kind, dimensions):
    rounded = round_to(wanted(**({"dimensions": dimensions} if dimensions else {})), kind).tolist()
    assert openai(client, input=URIS, embedding_type=kind, dimensions=dimensions) == rounded
    assert openai(client, input=URIS, embedding_type=[kind], dimensions=dimensions) == rounded
    found = cohere(client, images=URIS, embedding_types=[kind, "float", "base64"], output_dimension=dimensions)
    assert found[kind] == rounded and set(found) == {kind, "float", "base64"}
    assert b"".join(floats(row).tobytes() for row in found["base64"]) == bits(found["float"])
    voyage = client.post(
        "/v1/multimodalembeddings",
        json={
            "model": "photos",
            "inputs": [{"content": [part(text)]} for text in URIS],
            "output_dtype": kind,
            "output_encoding": "base64",
            "output_dimension": dimensions,
        },
    ).json()
    dtype = {"int8": np.int8, "binary": np.int8}.get(kind, np.uint8)
    assert [np.frombuffer(base64.b64decode(r["embedding"]), dtype).tolist() for r in voyage["data"]] == rounded
    images = [{"image": text} for text in URIS]
    azure = client.post(
        "/images/embeddings?api-version=2024-05-01-preview",
        json={
            "model": "photos",
            "input": images,
            "encoding_format": kind,
            "dimensions": dimensions,
        },
    ).json()
    assert [row["embedding"] for row in azure["data"]] == rounded


def cohere(client, **body):
    answer = client.post("/v2/embed", json={"model": "photos", "input_type": "image", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["embeddings"]


def test_cohere_and_azure_without_a_model_are_the_untouched_backbone(client, wanted):
    root = wanted(mask="photos")  # the mask is there, and not what is asked for
    found = client.post("/v2/embed", json={"images": URIS}).json()["embeddings"]["float"]
    azure = client.post("/images/embeddings", json={"input": [{"image": text} for text in URIS]}).json()
    assert azure["model"] == "test_vit" and bits([row["embedding"] for row in azure["data"]]) == bits(found)
    named = client.post("/v1/embeddings", json={"model": "test_vit", "input": URIS}).json()
    assert bits([row["embedding"] for row in named["data"]]) == bits(found) != bits(root)


@pytest.mark.parametrize("path", ["vectorize", "vectors"])
def test_weaviate_s_modules_need_no_content_type(client, wanted, path):
    one = json.dumps({"id": "7", "image": BARE[0]}).encode()
    found = client.post(f"/weaviate/photos@1/{path}", content=one).json()
    assert found.keys() == {"id", "vector", "dim", "space"} and (found["id"], found["dim"]) == ("7", 8)
    assert bits(found["vector"]) == bits(wanted(PHOTOS[:1])[0])
    several = json.dumps({"texts": [], "images": BARE}).encode()
    found = client.post(f"/weaviate/photos/{path}", content=several).json()
    assert found["textVectors"] == [] and bits(found["imageVectors"]) == bits(wanted())


def test_weaviate_asks_whether_it_may_send(client, wanted):
    wanted()
    assert client.get("/weaviate/photos/.well-known/live").status_code == 204
    assert client.get("/weaviate/photos/.well-known/ready").status_code == 204
    meta = client.get("/weaviate/photos/meta").json()
    assert meta["dim"] == 8 and meta["used"]["name"] == "photos" and meta["used"]["version"] == 1
    client.app.state.server.draining = True
    assert client.get("/weaviate/photos/.well-known/ready").status_code == 503
    assert client.get("/v2/health/ready").json() == {"ready": False}
    client.app.state.server.draining = False


@pytest.mark.parametrize("path", ["/readyz", "/v2/health/ready"])
def test_only_a_server_that_is_not_ready_says_when_to_ask_again(client, wanted, path):
    wanted()
    assert "retry-after" not in client.get(path).headers
    client.app.state.server.draining = True
    assert client.get(path).headers["retry-after"] == "1"
    client.app.state.server.draining = False


def test_every_answer_says_what_made_its_vectors(client, theta, wanted):
    wanted()
    digest = theta.mask(31).digest
    tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": BARE}
    for path, body in {
        "/v1/embeddings": {"model": "photos", "input": URIS},
        "/v2/embed": {"model": "photos", "images": URIS},
        "/v1/multimodalembeddings": {"model": "photos", "inputs": [{"content": [part(URIS[0])]}]},
        "/images/embeddings": {"model": "photos", "input": [{"image": URIS[0]}]},
        "/weaviate/photos/vectorize": {"images": BARE},
        "/v2/models/photos/infer": {"inputs": [tensor]},
    }.items():
        answer = client.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        assert answer.headers["x-smn-digest"] == digest
        assert {"queue", "decode", "forward", "total"} <= {
            part.split(";")[0] for part in answer.headers["server-timing"].split(", ")
        }


ASKED = {
    "/v1/embeddings": {"model": "photos", "input": URIS},
    "/v2/embed": {"model": "photos", "images": URIS},
    "/v1/multimodalembeddings": {"model": "photos", "inputs": [{"content": [part(URIS[0])]}]},
    "/images/embeddings": {"model": "photos", "input": [{"image": URIS[0]}]},
    "/weaviate/photos/vectorize": {"images": BARE},
    "/weaviate/photos/vectors": {"id": "1", "image": BARE[0]},
    "/v2/models/photos/infer": {"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": BARE}]},
    "/v2/models/photos/versions/1/infer": {
        "inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": BARE}]
    },
}


@pytest.mark.parametrize("path", ASKED)
def test_every_dialect_names_the_space_and_keeps_a_promised_one(client, wanted, require_error, path):
    wanted()
    space = client.get("/masks/photos").json()["space"]
    answer = client.post(path, json=ASKED[path])
    found = answer.json()
    assert answer.headers["x-smn-space"] == space
    assert (found["parameters"] if path.endswith("infer") else found)["space"] == space
    assert client.post(path, params={"space": space}, json=ASKED[path]).status_code == 200
    root = client.get("/info").json()["space"]
    message = require_error(client.post(path, params={"space": root}, json=ASKED[path]), 412, "other_space")
    assert space in message and root in message
    require_error(client.post(path, headers={"X-SMN-Expect-Space": root}, json=ASKED[path]), 412, "other_space")


def test_the_space_says_how_vectors_were_cut_and_rounded(client, wanted):
    wanted()
    space = client.get("/masks/photos").json()["space"]
    for path, more, shape in (
        ("/v1/embeddings", {"dimensions": 3, "normalized": True}, ":d3:l2"),
        ("/v1/embeddings", {"embedding_type": "binary", "normalized": True}, ":binary"),
        ("/v1/embeddings", {"encoding_format": "base64", "normalized": True}, ":l2"),
        ("/v2/embed", {"embedding_types": ["int8"], "output_dimension": 3}, ":d3:int8"),
        ("/v2/embed", {"embedding_types": ["int8", "float"]}, ""),
        ("/v2/embed", {"embedding_types": ["base64"]}, ""),
        ("/images/embeddings", {"encoding_format": "uint8"}, ":uint8"),
        ("/v1/multimodalembeddings", {"output_dtype": "ubinary"}, ":ubinary"),
    ):
        answer = client.post(path, json={**ASKED[path], **more})
        assert answer.headers["x-smn-space"] == answer.json()["space"] == space + shape, (path, more)
