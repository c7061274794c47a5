"""The verbs that look after a registry: backup, restore, gc --check; and alias, against a real server."""

import json
import subprocess

import pytest
from preloaded import SMN

from benchmarks.redis_server import RedisServer
from service.client import Client
from service.registry.open import open_registry

FINGERPRINT = "0123456789abcdef" * 4


def smn(*arguments, cwd):
    """Exit code, stdout, stderr of a real `smn`."""
    done = subprocess.run([SMN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def filled(tmp_path):
    """A registry in a folder with two versions of a mask and an alias."""
    registry = open_registry(tmp_path / "r", FINGERPRINT)
    for data in (b"one", b"two"):
        registry.publish("masks", "a", data)
    registry.set_alias("masks", "a", "champion", 1)
    return registry


def test_backup_and_restore_move_a_registry_from_a_folder_to_redis(filled, tmp_path):
    code, out, err = smn("backup", "r", "r.tar", cwd=tmp_path)
    assert (code, err) == (0, "") and "1 names, 2 files" in out
    code, _, err = smn("backup", "r", "r.tar", cwd=tmp_path)
    assert code == 2 and "--overwrite" in err
    with RedisServer(tmp_path / "redis") as server:
        code, out, _ = smn("restore", "r.tar", server.url, "--json", cwd=tmp_path)
        assert code == 0 and json.loads(out) == [{"backbone": FINGERPRINT[:16], "names": 1, "files": 2}]
        restored = open_registry(server.url, FINGERPRINT)
        assert restored.entry("masks", "a") == filled.entry("masks", "a")
        restored.close()
    whole = (tmp_path / "r.tar").read_bytes()
    (tmp_path / "r.tar").write_bytes(whole[:2000])
    code, _, err = smn("restore", "r.tar", "elsewhere", cwd=tmp_path)
    assert code == 2 and "archive" in err and not (tmp_path / "elsewhere").exists()
    code, _, err = smn("backup", "nothing", "n.tar", cwd=tmp_path)
    assert code == 2 and "holds no registry" in err and not (tmp_path / "nothing").exists()


def test_gc_check_asks_mends_and_says_whether_something_stays_wrong(filled, tmp_path):
    arguments = ("gc", "--check", "--registry", "r", "--fingerprint", FINGERPRINT)
    code, _, err = smn(*arguments, cwd=tmp_path)
    assert code == 0 and "nothing is wrong" in err
    (record,) = (tmp_path / "r").glob("*/masks/a.json")
    record.write_text("{")
    code, _, err = smn(*arguments, cwd=tmp_path)
    assert code == 2 and "mask a" in err and "--yes" in err and record.read_text() == "{"
    code, out, _ = smn(*arguments, "--yes", "--json", cwd=tmp_path)
    (found,) = json.loads(out)
    assert code == 0 and found["what"] == "mask a" and found["mended"]
    assert open_registry(tmp_path / "r", FINGERPRINT).resolve("masks", "a@champion").version == 1
    next((tmp_path / "r").glob("*/blobs/sha256/*")).write_bytes(b"other")
    code, out, _ = smn(*arguments, cwd=tmp_path)
    assert code == 1 and "not mended" in out


def test_an_alias_is_set_moved_and_deleted_from_the_shell(real, theta, tmp_path):
    server = ("--server", real.url)
    with Client(real.url) as client:
        for seed in (1, 2):
            client.push("shell", theta.mask(seed).data)
        code, out, _ = smn("alias", "shell", "champion", 1, *server, cwd=tmp_path)
        assert code == 0 and out.strip() == "shell@champion is shell@1"
        code, out, _ = smn("alias", "shell", "champion", 2, "--json", *server, cwd=tmp_path)
        warning = "vectors embedded through shell@1 are in another space"
        moved = {"name": "shell", "alias": "champion", "version": 2, "warnings": [warning]}
        assert code == 0 and json.loads(out) == moved
        code, _, err = smn("alias", "shell", "champion", 1, *server, cwd=tmp_path)
        assert code == 0 and "warning: vectors embedded through shell@2 are in another space" in err
        client.set_alias("shell", "champion", 2)
        assert client.mask("shell")["aliases"] == {"champion": 2}
        code, out, _ = smn("alias", "shell", "champion", "--delete", "--json", *server, cwd=tmp_path)
        assert (code, json.loads(out)["version"]) == (0, None)
        assert client.mask("shell")["aliases"] == {}
    for wrong in (
        ("shell", "v1", 1),
        ("shell", "Champion", 1),
        ("shell", "x"),
        ("shell", "x", 1, "--delete"),
        ("s#", "x", 1),
    ):
        assert smn("alias", *wrong, *server, cwd=tmp_path)[0] == 2
