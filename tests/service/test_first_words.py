"""What a user reads first: help, one line for a wrong call, for a port in use, for an extra that is missing."""

import json
import os
import re
import socket
import subprocess
import sys
import tomllib

import pytest
from served import ROOT, ServerProcess

EXTRAS = ("service", "training")
WITHOUT_EXTRAS = """
import sys, importlib.abc

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["smn", *{words}]
import smn
smn.main()
"""
MODULES = {
    "lightly", "matplotlib", "pytorch_lightning", "lightning_fabric", "sklearn", "threadpoolctl", "fastapi", "httpx2",
    "opentelemetry", "orjson", "prometheus_client", "pydantic_settings", "python_multipart", "multipart",
    "redis", "structlog", "uvicorn", "starlette", "fastapi_offline",
}  # fmt: skip


def smn(*words, folder=None, **environment):
    """A real `smn` with these words."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SMN_")}
    return subprocess.run(
        [sys.executable, "-m", "smn", *map(str, words)],
        cwd=folder or ROOT,
        env={**plain, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_smn_alone_lists_the_verbs():
    done = smn()
    assert (done.returncode, done.stderr) == (0, "")
    assert "smn VERB --help" in done.stdout and "  serve " in done.stdout and "  train " in done.stdout
    assert done.stdout == smn("--help").stdout


WRONG_CALLS = {
    "an unknown option": (["serve", "--nope"], "No such option: --nope", "smn serve --help"),
    "an unknown verb": (["servee"], "No such command 'servee'", "smn --help"),
    "a missing argument": (["push"], "Missing argument", "smn push --help"),
    "a missing option": (["train", "--data", "x"], "Missing option '--out'", "smn train --help"),
    "a value out of range": (["serve", "--port", "x"], "--port", "smn serve --help"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_call_is_one_line_that_names_the_help(case):
    words, says, help_line = WRONG_CALLS[case]
    done = smn(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("smn: error: ") and done.stderr.count("\n") == 1
    assert says in done.stderr and done.stderr.endswith(f"; try {help_line}\n")


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["serve"], "service"),
        (["list"], "service"),
        (["train", "--data", "x", "--out", "x.smn"], "training"),
        (["demo"], "service,training"),
    ],
)
def test_a_core_only_install_names_the_extra(words, extra, tmp_path):
    program = WITHOUT_EXTRAS.format(blocked=MODULES, words=words)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 2, done.stderr
    *before, last = done.stderr.splitlines()
    assert last.startswith(f"smn: error: {words[0]} needs ")
    assert all(line.startswith(f"smn {words[0]}: reading ") for line in before), "a slow start says what it does"
    assert f"uv pip install -e '.[{extra}]'" in done.stderr


def test_the_modules_that_the_extras_bring_are_all_blocked_above():
    """Else the test before would pass on an install that is not core-only."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.split(r"[>\[]", line)[0].replace("-", "_") for extra in EXTRAS for line in extras[extra]}
    modules = {"scikit_learn": "sklearn", "opentelemetry_api": "opentelemetry"}
    assert names and {modules.get(name, name) for name in names} <= MODULES


def test_what_is_broken_in_this_project_is_no_missing_extra(tmp_path):
    """A module of ours that cannot be imported is a fault, and its traceback is wanted."""
    program = WITHOUT_EXTRAS.format(blocked={"service.offer"}, words=["serve", "x.smn"]).replace(
        'name.split(".")[0] in', "name in"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1 and "Traceback" in done.stderr and "service.offer" in done.stderr


def test_a_port_in_use_names_the_flag_and_nothing_says_serving(theta, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ServerProcess([*theta.save(tmp_path), "--registry", tmp_path / "r"], tmp_path, port=port).start(False)
        assert server.process.wait(120) == 2
    (line,) = [line for line in server.log.splitlines() if line.startswith("smn: error: ")]
    assert f"port {port} of 127.0.0.1 is in use" in line and "--port" in line
    assert "serving on" not in server.log and "Traceback" not in server.log


def test_a_free_port_is_told(theta, tmp_path):
    """With --port 0 the line says which one it became."""
    words = ["serve", "--port", "0", *theta.save(tmp_path), "--registry", tmp_path / "r"]
    process = subprocess.Popen(
        [sys.executable, "-m", "smn", *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        said = next(line for line in process.stderr if line.startswith("serving on http://127.0.0.1:"))
        port = int(said.split("127.0.0.1:")[1].split()[0])
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            assert port > 0
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_gc_refuses_a_path_that_is_no_registry_and_makes_nothing(theta, tmp_path):
    fingerprint, registry = theta.backbone().fingerprint, tmp_path / "registry"
    for path, words in ((tmp_path / "wrong", "there is none"), (registry, "its backbones begin with " + "1" * 16)):
        if path == registry:
            (registry / ("1" * 16) / "blobs").mkdir(parents=True)
        done = smn("gc", "--registry", path, "--fingerprint", fingerprint)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        assert f"{path} holds no registry of the backbone {fingerprint[:16]}" in done.stderr and words in done.stderr
    assert not (tmp_path / "wrong").exists() and [p.name for p in registry.iterdir()] == ["1" * 16]


def test_a_piped_table_has_whole_digests(real, theta, plain_client):
    """A pipe has no edge, whatever the terminal around it is."""
    mask = theta.mask(77)
    name = "piped-" + "x" * 90
    assert plain_client.put_mask(name, mask.data).status == 201
    done = smn("list", "--server", real.url, COLUMNS="40")
    (row,) = [line for line in done.stdout.splitlines() if line.startswith(name)]
    assert row.split() == [name, "1", "1", mask.digest]


def test_push_ends_with_a_line_to_try_and_json_stays_as_it_was(real, theta, tmp_path):
    (tmp_path / "a.smn").write_bytes(theta.mask(78).data)
    done = smn("push", tmp_path / "a.smn", "--name", "tried", "--server", real.url)
    assert done.stdout.startswith("tried@1 sha256:") and done.stdout.count("\n") == 1
    assert done.stderr == f"next: curl -F image=@photo.jpg '{real.url}/embed?mask=tried'\n"
    again = smn("push", tmp_path / "a.smn", "--name", "tried", "--server", real.url, "--json")
    assert json.loads(again.stdout)["digest"] == theta.mask(78).digest
