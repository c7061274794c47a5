"""What a server makes of connections that are broken, slow, oversized or no HTTP: raw sockets against a real one."""

import http.client
import json
import socket
import time

import pytest
from served import eventually, photo

MIB = 2**20


def ask(real, *parts, half_close=False, within_s=20):
    """Send bytes as they are; status line, headers and body of the answer, None where there is none."""
    with socket.create_connection(("127.0.0.1", real.port), timeout=within_s) as connection:
        for part in parts:
            connection.sendall(part)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while b"\r\n\r\n" not in answer:
            if not (more := connection.recv(65536)):
                return None
            answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().lower().splitlines()[1:])
        while len(body) < int(headers["content-length"]):
            body += connection.recv(65536)
        return int(head.split()[1]), headers, body


def request(real, line, *headers, body=b""):
    named = [f"Host: 127.0.0.1:{real.port}", *headers, *([f"Content-Length: {len(body)}"] if body else [])]
    return "\r\n".join([f"{line} HTTP/1.1", *named, "", ""]).encode() + body


def require_error(answer, status, code):
    found, _, body = answer
    error = json.loads(body)["error"]
    assert (found, error["code"]) == (status, code) and set(error) == {"message", "type", "param", "code"}


def test_a_body_over_the_limit_is_told_to_a_client_that_sends_all_of_it_and_closes(real):
    """A reset in the middle of the upload would lose the answer."""
    body = b'{"images": ["' + b"A" * 80 * MIB + b'"]}'
    head = request(real, "POST /embed", "Content-Type: application/json", "Connection: close", body=body)
    require_error(ask(real, head), 413, "body_too_large")


@pytest.mark.parametrize("path", ["/nowhere", "/embed?mask=nowhere", "/masks/UPPER"])
def test_a_refusal_before_the_body_was_read_reaches_the_client(real, path):
    head = request(real, f"PUT {path}", "Content-Type: image/png", "Connection: close", body=b"x" * 8 * MIB)
    status, _, body = ask(real, head)
    assert 400 <= status < 500 and json.loads(body)["error"]["message"]


def test_a_refused_client_that_does_not_send_its_body_is_answered_at_once(real):
    began = time.monotonic()
    head = request(real, "POST /embed", "Content-Type: text/plain", "Content-Length: 1000")
    require_error(ask(real, head), 415, "unsupported_type")
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("line", ["POST /embed", "PUT /masks/stalled", "POST /v1/embeddings", "PUT /masks/m/current"])
def test_a_body_that_does_not_come_ends_with_the_deadline(real, line):
    kind = "image/png" if line == "POST /embed" else "application/json"
    head = request(real, line, f"Content-Type: {kind}", "X-Timeout-Ms: 200", "Content-Length: 1000")
    require_error(ask(real, head, b"the beginning"), 504, "deadline")


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01 is no HTTP\r\n\r\n",
        b"BREW /embed HTTP/1.1\r\n\r\n",
        b"GET /masks/\xff\xfe HTTP/1.1\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_the_one_error_body(real, head):
    require_error(ask(real, head), 400, "invalid_http")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /info HTTP/1.1\r\nX-A: " + b"a" * 70_000,
        b"GET /masks?after=" + b"a" * 70_000,
        b"GET /info HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(7_000)),
    ],
    ids=["a header", "a path", "headers"],
)
def test_a_head_without_end_is_refused(real, head):
    status, _, body = ask(real, head)
    assert status == 400 and json.loads(body)["error"]["code"] in ("head_too_large", "invalid_http")


def test_headers_within_the_bound_are_fine_on_every_request_of_a_connection(real):
    connection = http.client.HTTPConnection("127.0.0.1", real.port, timeout=20)
    for _ in range(4):
        connection.request("GET", "/livez", headers={"X-A": "a" * 30_000})
        with connection.getresponse() as answer:
            assert (answer.status, answer.read()) == (200, b'{"status":"alive"}')
    connection.close()


@pytest.mark.parametrize("half_close", [True, False])
def test_a_truncated_upload_leaves_no_trace(real, theta, half_close):
    data = theta.mask(51).data
    path = f"/masks/cut-{half_close}".lower()
    line = request(real, f"PUT {path}", f"Content-Length: {len(data)}")
    if half_close:
        assert ask(real, line, data[:-20], half_close=True) is None
    else:
        with socket.create_connection(("127.0.0.1", real.port)) as connection:
            connection.sendall(line + data[:-20])
    eventually(lambda: '"status": 499' in real.log)
    assert ask(real, request(real, f"GET {path}"))[0] == 404
    assert "Traceback" not in real.log


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(real):
    body = photo()
    head = request(
        real, "POST /embed", "Content-Type: image/png", "Expect: 100-continue", f"Content-Length: {len(body)}"
    )
    with socket.create_connection(("127.0.0.1", real.port), timeout=20) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
