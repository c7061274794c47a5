"""What no dialect embeds: each refuses it with the documented status, a code, and one clear line."""

import pytest
from spellings import BARE, URIS, part

TEXTS = {
    "/v1/embeddings": [
        {"input": "a cat"},
        {"input": ["YSBjYXQ="]},
        {"input": ""},
        {"input": [URIS[0], " "]},
        {"messages": [{"role": "user", "content": ""}]},
        {"input": [URIS[0], "hello"]},
        {"input": [{"text": "a cat"}]},
        {"input": [{"image": "a cat"}]},
        {"input": [{"image": BARE[0], "text": "a cat"}]},
        {"messages": [{"role": "user", "content": "a cat"}]},
        {"messages": [{"role": "user", "content": [part(URIS[0]), {"type": "text", "text": "Represent it."}]}]},
    ],
    "/v2/embed": [
        {"texts": ["a cat"]},
        {"images": ["a cat"]},
        {"inputs": [{"content": [{"type": "text", "text": "a"}]}]},
    ],
    "/v1/multimodalembeddings": [{"inputs": [{"content": [{"type": "text", "text": "a cat"}]}]}],
    "/images/embeddings": [{"input": [{"image": URIS[0], "text": "a cat"}]}, {"input": ["a cat"]}],
    "/weaviate/photos/vectorize": [
        {"texts": ["a cat"], "images": []},
        {"texts": ["a"], "images": BARE},
        {"image": "a cat"},
    ],
}
URL = "https://example.org/a.png"
URLS = {
    "/v1/embeddings": [{"input": URL}, {"input": [{"image": URL}]}, {"messages": [{"content": [part(URL)]}]}],
    "/v2/embed": [{"images": [URL]}, {"inputs": [{"content": [part(URL)]}]}],
    "/v1/multimodalembeddings": [{"inputs": [{"content": [{"type": "image_url", "image_url": URL}]}]}],
    "/images/embeddings": [{"input": [{"image": URL}]}],
    "/weaviate/photos/vectorize": [{"image": URL}, {"images": [URL]}],
}
WRONG = {
    "/v1/embeddings": [
        ({"input": 5}, 400, "invalid_request"),
        ({"input": [5]}, 400, "no_images"),
        ({"input": [[1, 2]]}, 400, "no_images"),
        ({"input": []}, 400, "no_images"),
        ({}, 400, "invalid_request"),
        ({"input": [{}]}, 400, "no_images"),
        ({"input": [{"image": 5}]}, 400, "invalid_image_text"),
        ({"input": [{"image": BARE[0][:40] + "!"}]}, 400, "invalid_image_text"),
        ({"input": [{"type": "video_url", "video_url": {"url": URL}}]}, 400, "no_images"),
        ({"input": [{"content": [part(URIS[0]), part(URIS[1])]}]}, 400, "several_images"),
        ({"messages": []}, 400, "no_images"),
        ({"messages": [{"content": [part(URIS[0]), part(URIS[1])]}]}, 400, "several_images"),
        ({"input": URIS, "messages": []}, 400, "input_and_messages"),
        ({"input": URIS, "embedding_type": "int8", "encoding_format": "float"}, 400, "two_encodings"),
        ({"input": URIS, "embedding_type": "int4"}, 400, "invalid_request"),
        ({"input": URIS, "normalized": 5}, 400, "invalid_request"),
        ({"input": URIS, "dimensions": 9}, 400, "too_many_dimensions"),
        ({"input": URIS, "dimensions": 0}, 400, "invalid_request"),
        ({"input": URIS, "model": "nowhere"}, 404, "not_found"),
        ({"input": URIS, "model": 5}, 400, "invalid_request"),
        ({"input": [URIS[0]] * 300}, 413, "too_many_images"),
        ({"input": ["data:image/png;base64,YWJj"]}, 422, "invalid_image"),
    ],
    "/v2/embed": [
        ({}, 400, "no_images"),
        ({"images": URIS, "inputs": URIS}, 400, "images_and_inputs"),
        ({"images": "x"}, 400, "invalid_request"),
        ({"images": URIS, "embedding_types": ["int4"]}, 400, "invalid_request"),
        ({"images": URIS, "output_dimension": 9}, 400, "too_many_dimensions"),
        ({"images": URIS, "output_dimension": "3"}, 400, "invalid_request"),
        ({"images": URIS, "model": "nowhere"}, 404, "not_found"),
    ],
    "/v1/multimodalembeddings": [
        ({"inputs": []}, 400, "no_images"),
        ({"inputs": [{"content": []}]}, 400, "no_images"),
        ({"inputs": [{"content": [part(URIS[0])]}], "output_dimension": 9}, 400, "too_many_dimensions"),
        ({"inputs": [{"content": [part(URIS[0])]}], "output_dtype": "int4"}, 400, "invalid_request"),
        ({"inputs": [{"content": [part(URIS[0])]}], "model": "nowhere"}, 404, "not_found"),
    ],
    "/images/embeddings": [
        ({"input": []}, 400, "no_images"),
        ({"input": [{"image": URIS[0]}], "dimensions": 9}, 400, "too_many_dimensions"),
        ({"input": [{"image": URIS[0]}], "model": "cascade:nowhere"}, 404, "not_found"),
    ],
    "/weaviate/photos/vectorize": [
        ({}, 400, "no_images"),
        ({"image": BARE[0], "images": BARE}, 400, "image_and_images"),
        ({"image": 5}, 400, "invalid_request"),
    ],
    "/weaviate/nowhere/vectorize": [({"image": BARE[0]}, 404, "not_found")],
}


def post(client, theta, path, body):
    client.put("/masks/photos", content=theta.mask(31).data)
    named = {} if "weaviate" in path else {"model": "photos"}
    return client.post(path, json={**named, **body})


def flat(table):
    return [(path, *(row if isinstance(row, tuple) else (row,))) for path, rows in table.items() for row in rows]


@pytest.mark.parametrize(("path", "body"), flat(TEXTS))
def test_text_is_refused_with_what_this_server_embeds(client, theta, require_error, path, body):
    assert "embeds images" in require_error(post(client, theta, path, body), 400, "text_input")


@pytest.mark.parametrize(("path", "body"), flat(URLS))
def test_a_url_is_refused(client, theta, require_error, path, body):
    assert "fetches nothing" in require_error(post(client, theta, path, body), 400, "url_not_fetched")


@pytest.mark.parametrize(("path", "body", "status", "code"), flat(WRONG))
def test_what_is_wrong_is_named(client, theta, require_error, path, body, status, code):
    message = require_error(post(client, theta, path, body), status, code)
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize("path", ["/v1/models/cascade:", "/v2/models/cascade:/ready", "/weaviate/cascade:/meta"])
def test_a_cascade_without_a_name_is_not_taken_for_the_untouched_backbone(client, require_error, path):
    require_error(client.get(path), 400, "invalid_argument")


@pytest.mark.parametrize("path", [*TEXTS, "/v2/models/photos/infer"])
def test_a_key_comes_before_the_body(serve, require_error, path):
    client = serve(api_keys=["reader"])
    require_error(client.post(path, content=b"{"), 401, "no_key")
    answer = client.post(path, content=b"{", headers={"authorization": "Bearer reader", "content-type": "text/html"})
    require_error(answer, 415, "unsupported_type")


def test_a_key_bound_to_a_prefix_reaches_no_other_name_in_any_dialect(serve, theta, require_error):
    client = serve(admin_keys=["admin", "a=customer-a."])
    client.put("/masks/photos", content=theta.mask(31).data, headers={"authorization": "Bearer admin"})
    own = {"authorization": "Bearer a"}
    for path in ("/v2/models/photos", "/v2/models/photos/ready", "/weaviate/photos/meta"):
        require_error(client.get(path, headers=own), 403, "wrong_name")
    for path in ("/v2/models/photos/infer", "/weaviate/photos/vectorize", "/v2/embed"):
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": BARE[:1]}
        body = {"inputs": [tensor]} if "models" in path else {"images": BARE[:1]}
        named = {"model": "photos"} if path == "/v2/embed" else {}
        require_error(client.post(path, json={**named, **body}, headers=own), 403, "wrong_name")
