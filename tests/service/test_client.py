"""`service/client.py` and the verbs that talk to a server, against a real one."""

import asyncio
import http.server
import inspect
import io
import itertools
import json
import socket
import sys
import threading
import urllib.request

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from served import ServerProcess, inputs, photo, relative_error

import smn
from benchmarks.redis_server import free_port
from service.client import AsyncClient, Client, ServerAway, ServerError
from service.registry.directory import DirectoryRegistry
from smn_core.collection import Collection
from smn_core.errors import InvalidArgument, OtherSpace


@pytest.fixture(scope="module")
def keyed(theta, tmp_path_factory):
    """A server with an admin key, "writer", and a reading key, "reader"."""
    folder = tmp_path_factory.mktemp("keyed")
    arguments = [*theta.save(folder), "--registry", folder / "registry", "--slots", "2"]
    with ServerProcess(arguments, folder, {"SMN_ADMIN_KEYS": "writer", "SMN_API_KEYS": "reader"}) as server:
        yield server


@pytest.fixture
def client(keyed):
    with Client(keyed.url, "writer") as client:
        yield client


@pytest.fixture
def mask(theta, tmp_path):
    mask = theta.mask(31)
    (tmp_path / "a.smn").write_bytes(mask.data)
    return mask


@pytest.fixture
def run(capsys, monkeypatch, keyed, tmp_path):
    """`smn.main()` in this process with these arguments: exit code, stdout, stderr."""
    monkeypatch.setenv("SMN_SERVER", keyed.url)
    monkeypatch.setenv("SMN_KEY", "writer")
    monkeypatch.chdir(tmp_path)

    def ran(*arguments):
        monkeypatch.setattr(sys, "argv", ["smn", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            smn.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, *capsys.readouterr()

    return ran


def test_a_client_pushes_embeds_rolls_back_pulls_and_deletes(client, theta, mask):
    other, x = theta.mask(32), inputs(2)
    assert client.push("c", mask.data)["version"] == 1
    assert client.push("c", other.data, if_match=mask.digest)["version"] == 2
    found = client.embed(x, mask="c")
    assert found.digest == other.digest and relative_error(found.embeddings, theta.embed(x, other)) < 1e-4
    assert "forward" in found.server_timing
    assert client.rollback("c", 1)["digest"] == mask.digest
    assert client.pull("c") == mask.data and client.pull("c", 2) == other.data
    assert client.mask("c")["current"]["version"] == 1
    assert "c" in [item["name"] for item in client.masks()]
    client.delete("c", 2)
    client.delete("c")
    with pytest.raises(ServerError) as refused:
        client.mask("c")
    assert refused.value.status == 404 and refused.value.code == "not_found"


def test_a_client_sends_files_and_bytes_and_asks_for_fewer_dimensions(client, theta, tmp_path):
    (tmp_path / "a.png").write_bytes(photo())
    found = client.embed([tmp_path / "a.png", photo()], normalize=True, dimensions=3)
    assert found.digest == "root" and found.embeddings.shape == (2, 3)
    assert np.allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-5)
    assert client.info()["dimensions"] == 8


def test_the_asynchronous_client_does_the_same(keyed, theta, mask):
    async def main():
        async with AsyncClient(keyed.url, "writer") as client:
            await client.push("async", mask.data)
            return await asyncio.gather(*(client.embed(inputs(), mask="async") for _ in range(8)))

    for found in asyncio.run(main()):
        assert relative_error(found.embeddings, theta.embed(inputs(), mask)) < 1e-4


def test_every_call_of_the_client_is_one_of_the_asynchronous_client_with_the_same_words():
    calls = {name for name in vars(Client) if not name.startswith("_")}
    assert calls == {name for name in vars(AsyncClient) if not name.startswith("_")} and len(calls) > 15
    for name in calls:
        ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (Client, AsyncClient))
        assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}, name
        assert getattr(Client, name).__doc__ and getattr(AsyncClient, name).__doc__


def test_the_asynchronous_client_embeds_a_stream_labels_and_answers_as_the_other(keyed, client, theta):
    given = [photo(i) for i in range(70)] + [b"no image"]

    async def main():
        async with AsyncClient(keyed.url, "writer") as asked:
            rows = [row async for row in asked.embed_each(iter(given), strict=False)]
            with pytest.raises(ServerError, match="image 70: "):
                await asked.embed(given)
            return rows, await asked.masks(), await asked.info(), await asked.space(normalize=True)

    rows, masks, info, space = asyncio.run(main())
    found = client.embed(given, strict=False)
    assert [row.number for row in rows] == list(range(71)) and rows[70].vector is None
    np.testing.assert_allclose(np.stack([row.vector for row in rows[:70]]), found.embeddings, rtol=1e-4, atol=1e-5)
    assert (masks, info["model"], space) == (client.masks(), "test_vit", f"{found.space}:l2")


def test_a_collection_refuses_what_a_push_over_its_name_gives(client, theta):
    client.push("collected", theta.mask(34).data)
    photos = Collection(client, "collected", dimensions=3)
    first = photos.embed([photo(1)])
    client.push("collected", theta.mask(35).data)
    with pytest.raises(OtherSpace, match="expects") as refused:
        photos.embed([photo(1)])
    assert isinstance(refused.value, ServerError) and refused.value.status == 412
    again = Collection(client, "collected@1", dimensions=3, space=photos.space)
    np.testing.assert_allclose(again.embed([photo(1)]).embeddings, first.embeddings, rtol=1e-5, atol=1e-6)


def test_a_client_tells_a_server_that_is_away_from_one_that_refuses(keyed):
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ServerAway, match="no answer"):
        client.info()
    with Client(keyed.url, "wrong") as client, pytest.raises(ServerError, match="key") as refused:
        client.info()
    assert refused.value.status == 401
    with pytest.raises(InvalidArgument, match="http://"):
        Client("localhost:8000")


def test_a_client_waits_as_long_as_it_is_told_and_tries_again():
    import time

    times = []

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            times.append(time.monotonic())
            self.send_response(200 if len(times) == 3 else 503 if len(times) == 2 else 429)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            assert client.info() == {}
        server.shutdown()
    assert len(times) == 3 and all(b - a >= 0.99 for a, b in itertools.pairwise(times))


def test_the_verbs_push_list_roll_back_pull_and_delete(run, theta, mask, tmp_path):
    code, out, _ = run("push", "a.smn", "--name", "v")
    assert code == 0 and out.startswith(f"v@1 {mask.digest}")
    (tmp_path / "b.smn").write_bytes(theta.mask(33).data)
    code, out, _ = run("push", "b.smn", "--name", "v", "--if-match", mask.digest, "--json")
    assert code == 0 and json.loads(out)["version"] == 2
    code, out, _ = run("list", "--json")
    assert (
        code == 0
        and {"name": "v", "versions": 2}.items() <= next(m for m in json.loads(out) if m["name"] == "v").items()
    )
    assert "v" in run("list")[1]
    code, out, _ = run("rollback", "v", "1", "--json")
    assert code == 0 and json.loads(out)["digest"] == mask.digest
    assert run("pull", "v")[0] == 0 and (tmp_path / "v.smn").read_bytes() == mask.data
    assert run("pull", "v@2", "--out", "second.smn")[0] == 0
    assert (tmp_path / "second.smn").read_bytes() == theta.mask(33).data
    assert run("delete", "v", "--version", "2", "--yes")[0] == 0
    assert run("delete", "v", "--yes")[0] == 0
    assert run("pull", "v", "--overwrite")[0] == 2


BAD_COMMANDS = {
    "a server that is away": (["list", "--server", "http://127.0.0.1:1"], "no answer"),
    "a server that is no URL": (["list", "--server", "nowhere"], "http://"),
    "a wrong key": (["list", "--key", "wrong"], "key"),
    "a key that may not": (["push", "a.smn", "--name", "w", "--key", "reader"], "not change"),
    "a file that is not there": (["push", "none.smn", "--name", "w"], "none.smn"),
    "a file that is no mask": (["push", "text.smn", "--name", "w"], ""),
    "a name outside of the rule": (["push", "a.smn", "--name", "Upper"], "name"),
    "a name that is taken": (["push", "a.smn", "--name", "taken", "--if-absent"], ""),
    "an unknown mask": (["rollback", "nowhere", "1"], "nowhere"),
    "an unknown mask to delete": (["delete", "nowhere", "--yes"], "nowhere"),
    "a pull by digest": (["pull", "m@sha256:00"], "name@version"),
    "a registry that is none": (["gc", "--registry", "ftp://x", "--fingerprint", "0" * 64, "--yes"], "registry"),
}


@pytest.mark.parametrize("which", BAD_COMMANDS)
def test_what_cannot_be_done_exits_with_2_and_one_line(run, client, mask, tmp_path, which):
    (tmp_path / "text.smn").write_text("no mask")
    if which == "a name that is taken":
        client.push("taken", mask.data)
    arguments, words = BAD_COMMANDS[which]
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("smn: error: ") and err.count("\n") == 1 and words in err


BAD_NAMES = [
    "photos#1",
    "photos?",
    "x/../photos",
    "photos/file",
    "../photos",
    "Photos",
    "",
    ".",
    "photos ",
    "photos%23",
    "ä",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_never_becomes_a_url(run, client, mask, tmp_path, name):
    """Every one of these would have reached another mask, or none, once it was part of a URL."""
    client.push("photos", mask.data)
    for call in (
        lambda: client.push(name, mask.data),
        lambda: client.pull(name),
        lambda: client.pull_cascade(name, tmp_path / "folder"),
        lambda: client.mask(name),
        lambda: client.cascade(name),
        lambda: client.rollback(name, 1),
        lambda: client.delete(name),
        lambda: client.delete(name, kind="cascades"),
        lambda: client.embed(inputs(), mask=name),
        lambda: client.embed(inputs(), cascade=name),
    ):
        with pytest.raises(InvalidArgument, match="not a name"):
            call()
    for arguments in (
        ("push", "a.smn", "--name", name),
        ("pull", name),
        ("pull", f"cascade:{name}"),
        ("rollback", name, "1"),
        ("delete", name, "--yes"),
        ("delete", f"cascade:{name}", "--yes"),
    ):
        code, _, err = run(*arguments)
        said = "not a name" if all(arguments) else "is empty"
        assert code == 2 and said in err and err.count("\n") == 1
    assert len(client.mask("photos")["versions"]) == 1
    client.delete("photos")


def test_numbers_and_digests_are_checked_before_they_are_sent(client, mask):
    for call in (
        lambda: client.pull("m", 0),
        lambda: client.delete("m", -1),
        lambda: client.rollback("m", 10**20),
        lambda: client.push("m", mask.data, if_match="§"),
        lambda: client.embed(inputs(), mask="m@²"),
    ):
        with pytest.raises(InvalidArgument):
            call()


class Terminal(io.StringIO):
    """A user's answers."""

    def isatty(self):
        return True


def test_delete_asks_on_a_terminal_and_wants_yes_elsewhere(run, client, mask, monkeypatch):
    client.push("asked", mask.data)
    code, out, err = run("delete", "asked")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "mask asked, with all its versions, on http" in err and "--yes" in err
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    code, out, err = run("delete", "asked", "--version", "1")
    assert code == 1 and out.strip() == "" and "Delete mask asked, version 1, on http" in err
    assert client.mask("asked")["current"]["version"] == 1
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    code, _, err = run("delete", "asked")
    assert code == 0 and "deleted mask asked" in err
    assert "asked" not in [entry["name"] for entry in client.masks()]


def test_gc_asks_before_it_opens_the_registry(run, tmp_path):
    DirectoryRegistry(tmp_path / "masks", "0" * 64).close()
    before = sorted(path.name for path in (tmp_path / "masks").rglob("*"))
    code, _, err = run("gc", "--registry", tmp_path / "masks", "--fingerprint", "0" * 64)
    assert code == 2 and "no version refers to" in err and "--yes" in err
    assert sorted(path.name for path in (tmp_path / "masks").rglob("*")) == before
    assert run("gc", "--registry", tmp_path / "none", "--fingerprint", "0" * 64)[0] == 2
    assert not (tmp_path / "none").exists()


def test_pull_overwrites_only_where_it_is_told(run, client, mask, tmp_path):
    client.push("kept", mask.data)
    (tmp_path / "kept.smn").write_text("mine")
    (tmp_path / "folder").mkdir()
    code, _, err = run("pull", "kept")
    assert code == 2 and "kept.smn exists" in err and "--overwrite" in err
    assert (tmp_path / "kept.smn").read_text() == "mine"
    assert "exists" in run("pull", "cascade:kept", "--out", tmp_path / "folder")[2]
    with pytest.raises(InvalidArgument, match="exists"):
        client.pull_cascade("kept", tmp_path / "folder")
    assert run("pull", "kept", "--overwrite")[0] == 0
    assert (tmp_path / "kept.smn").read_bytes() == mask.data


VERBS = {
    "list": ["list"],
    "push": ["push", "a.smn", "--name", "n"],
    "pull": ["pull", "n"],
    "rollback": ["rollback", "n", "1"],
    "delete": ["delete", "n", "--yes"],
}
OUTSIDE = {
    "a key that is not ASCII": ({"SMN_KEY": "schlüssel"}, "HTTP header"),
    "a key with a line break inside": ({"SMN_KEY": "sec\nret"}, "HTTP header"),
    "an address that is cut short": ({"SMN_SERVER": "http://[::1"}, "not an http://"),
    "a port in letters": ({"SMN_SERVER": "http://127.0.0.1:abc"}, "not an http://"),
    "a port that is too large": ({"SMN_SERVER": "http://127.0.0.1:99999"}, "not an http://"),
    "an address without a host": ({"SMN_SERVER": "http://"}, "not an http://"),
    "an address with a query": ({"SMN_SERVER": "http://127.0.0.1/?a"}, "not an http://"),
    "a SOCKS proxy": ({"SMN_SERVER": "http://smn.invalid", "ALL_PROXY": "socks5://u:pass@127.0.0.1:1"}, "proxy"),
    "a malformed proxy": ({"SMN_SERVER": "http://smn.invalid", "http_proxy": "http://u:pass@[::1"}, "proxy"),
    "a proxy of no scheme": ({"SMN_SERVER": "http://smn.invalid", "http_proxy": "nope://u:pass@h"}, "proxy"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("which", OUTSIDE)
def test_texts_from_outside_are_one_clear_line_in_every_verb(run, mask, monkeypatch, which, verb):
    variables, words = OUTSIDE[which]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out, err = run(*VERBS[verb])
    assert code == 2 and out == "" and err.startswith("smn: error: ") and err.count("\n") == 1
    assert words in err and "schl" not in err and "ret" not in err.replace("secret", "") and "pass" not in err


def test_a_proxy_that_the_server_does_not_need_is_no_matter(run, keyed, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    assert run("list")[0] == 0


def test_white_space_around_a_key_is_nothing(run, monkeypatch):
    monkeypatch.setenv("SMN_KEY", " writer\n")
    assert run("list")[0] == 0
    monkeypatch.setenv("OF_MINE", "writer\n")
    assert run("list", "--key", "env:OF_MINE")[0] == 0


STRANGE = {
    "HTML": b"<html>Bearer writer</html>",
    "no object": b"[]",
    "an object of another kind": b'{"version": "\xc2\xb2"}',
    "entries of another kind": b'{"data": [{"name": 1}], "next": null}',
    "nesting": b"[" * 100_000,
    "not UTF-8": b"\xff\x1b[2J",
}


@pytest.mark.parametrize("status", [200, 404, 503])
@pytest.mark.parametrize("which", STRANGE)
def test_a_server_that_is_no_smn_is_one_clear_line(run, mask, which, status):
    """Odd bodies, statuses and Retry-After; the answer may repeat the key, the error does not."""

    class Strange(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(STRANGE[which])))
            self.send_header("Retry-After", "\xb2" if status == 404 else "0")
            self.end_headers()
            self.wfile.write(STRANGE[which])

        do_GET = do_PUT = do_POST = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Strange) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for verb in ("list", "push", "rollback"):
            code, out, err = run(*VERBS[verb], "--server", url)
            assert code == 2 and out == "" and err.startswith("smn: error: ") and err.count("\n") == 1
            assert "writer" not in err and "\x1b" not in err
        with Client(url, "writer") as client, pytest.raises(ServerError):
            client.embed(inputs())
        server.shutdown()


def test_gc_deletes_what_no_version_refers_to(run, theta, tmp_path):
    fingerprint = theta.backbone().fingerprint
    registry = DirectoryRegistry(tmp_path / "registry", fingerprint)
    gone, kept = theta.mask(41), theta.mask(42)
    registry.publish("masks", "gone", gone.data)
    registry.publish("masks", "kept", kept.data)
    registry.delete("masks", "gone")
    arguments = ["gc", "--registry", tmp_path / "registry", "--fingerprint", fingerprint, "--json", "--yes"]
    assert json.loads(run(*arguments)[1]) == []
    code, out, _ = run(*arguments, "--grace-s", "0")
    assert code == 0 and json.loads(out) == [gone.digest]
    assert registry.blob(kept.digest) == kept.data


START_ERRORS = {
    "an address beyond loopback without a key": (["--host", "0.0.0.0"], "SMN_ADMIN_KEYS"),
    "a mask to preload that is not there": (["--preload", "nowhere"], "nowhere"),
    "a port that is taken": (["--port", "{taken}"], "{taken}"),
    "a port that is none": (["--port", "70000"], "port"),
    "weights that are not there": (["--weights", "none.safetensors"], "none.safetensors"),
    "weights with a NaN": (["--weights", "nan.safetensors"], "blocks.0.mlp.fc1.weight has a value that is not finite"),
}


@pytest.mark.parametrize("which", START_ERRORS)
def test_a_server_that_cannot_start_exits_with_2_and_one_line(run, theta, keyed, tmp_path, which):
    arguments, words = START_ERRORS[which]
    given = [word.format(taken=keyed.port) for word in arguments]
    base = [*theta.save(tmp_path), "--registry", tmp_path / "registry", "--port", free_port()]
    nan = torch.full_like(theta.weights["blocks.0.mlp.fc1.weight"], float("nan"))
    save_file({**theta.weights, "blocks.0.mlp.fc1.weight": nan}, tmp_path / "nan.safetensors")
    code, _, err = run("serve", *base, *given)
    assert code == 2
    errors = [line for line in err.splitlines() if line.startswith("smn: error: ")]
    assert len(errors) == 1 and words.format(taken=keyed.port) in errors[0]
    assert "Traceback" not in err


def test_preloaded_masks_are_resident_before_the_server_is_ready(theta, tmp_path):
    registry = DirectoryRegistry(tmp_path / "registry", theta.backbone().fingerprint)
    for name in ("a", "b"):
        registry.publish("masks", name, theta.mask(ord(name)).data)
    arguments = [*theta.save(tmp_path), "--registry", tmp_path / "registry", "--preload", "a", "--pin", "b@1"]
    with ServerProcess(arguments, tmp_path) as server, Client(server.url) as client:
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            assert 'smn_masks_resident{tier="host"} 2.0' in answer.read().decode()
        assert client.embed(inputs(), mask="a").digest == theta.mask(ord("a")).digest


class ClosingServer:
    """Answers the first request of every connection, and closes the connection when the second comes."""

    def __init__(self):
        self.listening, self.seen = socket.create_server(("127.0.0.1", 0)), []
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                self.seen.append(connection.recv(65536).split(b" ")[0])
                body = b'{"data":[],"next":null}'
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                if connection.recv(65536):
                    self.seen.append(b"closed")


@pytest.fixture
def closing():
    server = ClosingServer()
    yield server
    server.listening.close()


def test_a_connection_that_the_server_has_just_closed_costs_no_error(closing):
    with Client(closing.url) as client:
        assert client.masks() == client.masks() == []
    assert closing.seen == [b"GET", b"closed", b"GET"]


def test_an_upload_with_a_guard_is_not_sent_twice(closing):
    with Client(closing.url) as client:
        client.masks()
        with pytest.raises(ServerAway, match=r"disconnected|reset by peer"):
            client.push("a", b"x", if_absent=True)
    assert closing.seen == [b"GET", b"closed"]


def test_a_first_connection_that_is_closed_is_an_error_at_once(closing):
    listening = socket.create_server(("127.0.0.1", 0))

    def close_all():
        for _ in range(2):
            connection, _ = listening.accept()
            connection.recv(65536)
            connection.close()

    threading.Thread(target=close_all, daemon=True).start()
    with listening, Client(f"http://127.0.0.1:{listening.getsockname()[1]}") as client, pytest.raises(ServerAway):
        client.masks()
