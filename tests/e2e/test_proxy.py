"""deploy/proxy on a real nginx: what it sends again and what once, and HTTPS. The replicas here are made to fail."""

import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from independent_client import IndependentClient
from stack import REPLICAS, SECRETS, Stack, program

pytestmark = pytest.mark.timeout(900)

TRIES = 20  # nginx takes a random one of two first: all at the same one, once in a million times


class Replica:
    """Something that answers 200, or takes a whole request and hangs up. It counts what it got."""

    def __init__(self, address, port, answers):
        self.got = Counter()

        class Handler(BaseHTTPRequestHandler):
            def take(handler):
                handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
                self.got[handler.command, handler.path] += 1
                handler.close_connection = True
                if answers:
                    handler.send_response(200)
                    handler.send_header("Content-Length", "0")
                    handler.end_headers()

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = take

            def log_message(handler, *_):
                """Be silent."""

        self.server = ThreadingHTTPServer((address, port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """The Compose file with a certificate of its own; its replicas are not started."""
    program("nginx", "nginx-light")
    folder = tmp_path_factory.mktemp("proxy")
    names = "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    files = f"-keyout {folder / 'tls.key'} -out {folder / 'tls.crt'}"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 {names} {files}".split()
    subprocess.run(command, check=True, capture_output=True)
    stack = Stack(folder, {**SECRETS, "TLS_DIR": str(folder)})
    yield stack
    stack.names.close()


@pytest.fixture
def replicas(stack):
    """One that hangs up and one that answers."""
    found = [
        Replica(address, stack.smn_port, answers) for address, answers in zip(REPLICAS, (False, True), strict=True)
    ]
    yield found
    for replica in found:
        replica.stop()


@pytest.fixture
def client(stack, replicas):
    proxy = stack.proxy()
    proxy.start()
    yield IndependentClient(stack.url)
    proxy.stop()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/embed"), ("POST", "/v1/embeddings"), ("GET", "/masks"), ("HEAD", "/masks/m"), ("GET", "/readyz")],
)
def test_what_changes_nothing_is_sent_again_to_the_next_replica(client, replicas, method, path):
    answers = [client.call(method, path, b"x" if method == "POST" else None).status for _ in range(TRIES)]
    assert answers == [200] * TRIES
    bad, good = (replica.got[method, path] for replica in replicas)
    assert good == TRIES and bad > 0


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/masks/m"), ("PUT", "/masks/m/current"), ("DELETE", "/masks/m"), ("PUT", "/cascades/c"), ("POST", "/x")],
)
def test_a_change_is_sent_once_and_its_client_told(client, replicas, method, path):
    answers = [client.call(method, path, b"x") for _ in range(TRIES)]
    bad, good = (replica.got[method, path] for replica in replicas)
    told = Counter(answer.status for answer in answers)
    assert bad + good == TRIES and bad > 0 and told == {200: good, 503: bad}
    away = next(answer for answer in answers if answer.status == 503)
    assert away.json["error"]["code"] == "unavailable" and away.headers["retry-after"] == "1"


def test_https_with_a_certificate_of_ones_own(stack, replicas):
    proxy = stack.proxy(tls=True)
    proxy.start()
    try:
        trusts = ssl.create_default_context(cafile=stack.folder / "tls.crt")
        request = urllib.request.Request(f"{stack.tls_url}/embed", b"x", method="POST")
        for _ in range(TRIES):
            with urllib.request.urlopen(request, context=trusts, timeout=60) as answer:
                assert answer.status == 200 and "max-age" in answer.headers["Strict-Transport-Security"]
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(request, context=ssl.create_default_context(), timeout=60)
        with pytest.raises(urllib.error.HTTPError, match="400"):  # plain words at the port of HTTPS
            urllib.request.urlopen(stack.tls_url.replace("https", "http"), timeout=60)
    finally:
        proxy.stop()
