"""`service/client.py` and the verbs that talk to a server, against a real one."""

import asyncio
import itertools
import json
import sys
import urllib.request

import numpy as np
import pytest
from served import ServerProcess, inputs, photo, relative_error

import smn
from benchmarks.redis_server import free_port
from service.client import AsyncClient, Client, ServerAway, ServerError
from service.registry.directory import DirectoryRegistry
from smn_core.errors import InvalidArgument


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


def test_a_client_tells_a_server_that_is_away_from_one_that_refuses(keyed):
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ServerAway, match="no answer"):
        client.info()
    with Client(keyed.url, "wrong") as client, pytest.raises(ServerError, match="key") as refused:
        client.info()
    assert refused.value.status == 401
    with pytest.raises(InvalidArgument, match="http://"):
        Client("localhost:8000")


def test_a_client_waits_as_long_as_it_is_told_and_tries_again():
    import http.server
    import threading
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
    assert run("delete", "v", "--version", "2")[0] == 0
    assert run("delete", "v")[0] == 0
    assert run("pull", "v")[0] == 2


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
    "an unknown mask to delete": (["delete", "nowhere"], "nowhere"),
    "a pull by digest": (["pull", "m@sha256:00"], "name@version"),
    "a registry that is none": (["gc", "--registry", "ftp://x", "--fingerprint", "0" * 64], "registry"),
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


def test_gc_deletes_what_no_version_refers_to(run, theta, tmp_path):
    fingerprint = theta.backbone().fingerprint
    registry = DirectoryRegistry(tmp_path / "registry", fingerprint)
    gone, kept = theta.mask(41), theta.mask(42)
    registry.publish("masks", "gone", gone.data)
    registry.publish("masks", "kept", kept.data)
    registry.delete("masks", "gone")
    arguments = ["gc", "--registry", tmp_path / "registry", "--fingerprint", fingerprint, "--json"]
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
}


@pytest.mark.parametrize("which", START_ERRORS)
def test_a_server_that_cannot_start_exits_with_2_and_one_line(run, theta, keyed, tmp_path, which):
    arguments, words = START_ERRORS[which]
    given = [word.format(taken=keyed.port) for word in arguments]
    base = [*theta.save(tmp_path), "--registry", tmp_path / "registry", "--port", free_port()]
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
