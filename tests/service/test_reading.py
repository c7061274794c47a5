"""Bodies are refused by their heads, before a byte of them is read, and what is read is claimed of one budget."""

import asyncio
import gzip
import json

import pytest
from served import photo

MIB = 2**20


def call(app, method, path, headers, parts=()):
    """One request straight to the application; status, code, headers, and the parts read before the answer."""
    sent, left, read = [], list(parts), []

    async def receive():
        if not any(message["type"] == "http.response.start" for message in sent):
            read.append(True)
        if not left and parts:
            await asyncio.Event().wait()  # the client waits for its answer
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": raw, "http_version": "1.1", "scheme": "http", "root_path": "", "asgi": {"version": "3.0"}}
    asyncio.run(app({**scope, "client": ("10.0.0.9", 1), "server": ("x", 80), "state": {}}, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    code = json.loads(body)["error"]["code"] if sent[0]["status"] >= 400 else None
    return sent[0]["status"], code, answered, len(read)


DIALECTS = ["/v1/embeddings", "/v2/embed", "/v1/multimodalembeddings", "/images/embeddings"]
DIALECTS += ["/weaviate/m/vectorize", "/weaviate/m/vectors", "/v2/models/m/infer", "/v2/models/m/versions/1/infer"]
ROUTES = [("POST", "/embed", "image/png"), *(("POST", path, "application/json") for path in DIALECTS)]
UPLOADS = [("PUT", "/masks/a", "x/y"), ("PUT", "/cascades/a", "x/y"), ("PUT", "/masks/a/current", "application/json")]


def heads(kind, **more):
    return {"content-type": kind, "content-length": "1000", **more}


@pytest.mark.parametrize(("method", "path", "kind"), ROUTES + UPLOADS)
def test_a_key_is_checked_before_the_body_is_read(serve, method, path, kind):
    app = serve(api_keys=["reader"], admin_keys=["admin"]).app
    assert call(app, method, path, heads(kind))[::3] == (401, 0)
    status = 403 if method == "PUT" else 499
    assert call(app, method, path, heads(kind, authorization="Bearer reader"))[0] == status


@pytest.mark.parametrize(("method", "path", "kind"), ROUTES + UPLOADS)
def test_a_body_beyond_the_budget_is_refused_unread_with_when_to_come_again(client, method, path, kind):
    budget = client.app.state.server.body_bytes
    budget.take("10.0.0.9", 256 * MIB - 999)
    status, code, headers, read = call(client.app, method, path, heads(kind))
    assert (status, code, headers["retry-after"], read) == (429, "queue_full", "1", 0)
    budget.give("10.0.0.9", 1)
    assert call(client.app, method, path, heads(kind))[0] == 499  # it was read: nothing came
    assert budget.admitted == 256 * MIB - 1000


@pytest.mark.parametrize(("method", "path", "kind"), ROUTES + UPLOADS)
def test_a_body_that_is_too_large_or_compressed_is_refused_unread(client, method, path, kind):
    assert call(client.app, method, path, heads(kind, **{"content-length": "99999999999"}))[::3] == (413, 0)
    found = call(client.app, method, path, heads(kind, **{"content-encoding": "gzip"}))
    assert (found[0], found[1], found[3]) == (415, "unsupported_encoding", 0)


@pytest.mark.parametrize(("method", "path", "kind"), ROUTES)
def test_a_request_that_finds_no_place_is_refused_unread(client, method, path, kind):
    client.app.state.server.admission.take("10.0.0.9", 512)
    assert call(client.app, method, path, heads(kind))[::3] == (429, 0)


def test_a_body_of_unknown_length_is_claimed_as_it_comes(client):
    budget = client.app.state.server.body_bytes
    budget.take("10.0.0.9", 256 * MIB - 2500)
    # No array is there to be decoded: the workers that decode belong to the application's own event loop.
    chunked = {"content-type": "application/x-npy", "transfer-encoding": "chunked"}
    parts = [b"x" * 1000] * 5
    assert call(client.app, "POST", "/embed", chunked, parts)[::3] == (429, 3)
    assert call(client.app, "POST", "/embed", chunked, parts[:2])[0] in (400, 422)
    assert budget.admitted == 256 * MIB - 2500


@pytest.mark.parametrize("form", ["raw", "multipart", "json"])
def test_a_claim_lasts_as_long_as_its_request(client, form):
    import base64

    image, budget = photo(), client.app.state.server.body_bytes
    most = []
    budget.take = lambda who, n, take=budget.take: (take(who, n), most.append(budget.admitted))
    given = {
        "raw": {"content": image, "headers": {"content-type": "image/png"}},
        "multipart": {"files": [("image", ("a", image)), ("images", ("b", image))]},
        "json": {"json": {"images": [base64.b64encode(image).decode()]}},
    }[form]
    answer = client.post("/embed", **given)
    assert answer.status_code == 200
    assert max(most) == int(answer.request.headers["content-length"]) and budget.admitted == 0


def test_a_compressed_body_is_told_to_come_as_it_is(client, require_error):
    headers = {"content-type": "image/png", "content-encoding": "gzip"}
    answer = client.post("/embed", content=gzip.compress(photo()), headers=headers)
    assert "as it is" in require_error(answer, 415, "unsupported_encoding")
    assert client.post("/embed", content=photo(), headers={**headers, "content-encoding": "identity"}).is_success
