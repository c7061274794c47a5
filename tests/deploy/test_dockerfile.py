"""What can be known of the image without an engine: its files, its commands, its entry point, its health check."""

import fnmatch
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile import BUILD, FINAL, ROOT, argument_of, copies, environment, instructions
from served import ServerProcess


@pytest.mark.parametrize(
    "source", [source for stage in (BUILD, FINAL) for sources, _ in copies(stage) for source in sources]
)
def test_everything_copied_is_in_the_repository(source):
    assert (ROOT / source).exists()


def test_the_context_is_what_is_copied_and_nothing_else():
    """.dockerignore shuts everything out and lets in the sources of COPY (or a folder that holds them)."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    sources = {source for stage in (BUILD, FINAL) for sources, _ in copies(stage) for source in sources}
    assert rules[0] == "*"
    assert all(any(Path(source).is_relative_to(path) for path in let_in) for source in sources)
    assert all(any(Path(source).is_relative_to(path) for source in sources) for path in let_in)
    assert all(fnmatch.fnmatch("service/__pycache__", rule) for rule in rules if "__pycache__" in rule)


def test_the_image_starts_the_smn_command_as_an_ordinary_user():
    assert argument_of("ENTRYPOINT") == ["smn"] and argument_of("CMD") == ["serve"]
    users = [argument for name, argument in FINAL if name == "USER"]
    assert users == ["10001"] and ("useradd --create-home --uid 10001 smn" in dict(FINAL[:2]).get("RUN", ""))


def test_its_environment_is_settings_of_the_server():
    from service.settings import Settings

    names = {f"SMN_{name}".upper() for name in Settings.model_fields}
    assert {name for name in environment(FINAL) if name.startswith("SMN_")} <= names


def test_versions_are_those_of_the_constraints():
    installs = [argument for name, argument in BUILD if name == "RUN" and "uv pip install" in argument]
    assert installs and all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs)


def test_the_cpu_build_takes_torch_and_torchvision_from_one_index():
    """`--torch-backend` moves both; with the default it is not there at all."""
    (install,) = [argument for name, argument in BUILD if name == "RUN" and "--extra" in argument]
    part = install[install.index("$([") : install.index("-r pyproject")]
    for device, words in (("cuda", ""), ("cpu", "--torch-backend cpu")):
        done = subprocess.run(
            ["sh", "-c", f"echo {part}"], env={"DEVICE": device}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == words


def health(port, **more):
    """The exit code of HEALTHCHECK's command."""
    python, *rest = argument_of("HEALTHCHECK")
    assert python == "python"
    return subprocess.run(
        [sys.executable, *rest], env={"SMN_PORT": str(port), **more}, capture_output=True, check=False
    ).returncode


def test_the_health_check_knows_a_running_server_from_a_stopped_one(flags, tmp_path):
    with ServerProcess([*flags, "--registry", tmp_path / "registry"], tmp_path) as server:
        assert health(server.port) == health(server.port, SMN_HOST="0.0.0.0") == 0
        assert health(server.port, SMN_HOST="::1") != 0  # it asks where the server listens
    assert health(server.port) != 0


def uv(folder):
    """A folder for PATH that has uv, which `make setup` found or installed."""
    if shutil.which("uv"):
        return Path(shutil.which("uv")).parent
    shim = folder / "uv"
    shim.write_text(f'#!/bin/sh\nexec {Path(sys.base_prefix) / "bin" / "python3"} -m uv "$@"\n')
    shim.chmod(0o755)
    return folder


def test_the_build_stage_makes_an_environment_that_serves(flags, theta, tmp_path):
    """Its commands run here: files copied first, /opt/smn and /src in a temporary folder, packages from uv's cache."""
    source, target, tools = tmp_path / "src", tmp_path / "smn", tmp_path / "tools"
    source.mkdir()
    tools.mkdir()
    arguments = dict(argument.split("=", 1) for name, argument in instructions() if name == "ARG" and "=" in argument)
    here = {
        **{key: value for key, value in os.environ.items() if not key.startswith("SMN_")},
        **arguments,
        "PATH": f"{uv(tools)}:{os.environ['PATH']}",
        "HOME": str(Path.home()),
        "UV_PYTHON": sys.executable,
    }
    for name, argument in BUILD:
        if name == "COPY":
            *sources, _ = argument.split()
            for part in sources:
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                copy(ROOT / part, source / part)
        elif name == "RUN":
            command = argument.replace("/opt/smn", str(target)).replace("pip install --no-cache-dir uv", "uv --version")
            done = subprocess.run(
                ["sh", "-c", command], cwd=source, env=here, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    command = target / "bin" / "smn"
    assert "Learn a mask" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    with ServerProcess([*flags, "--registry", tmp_path / "registry"], tmp_path, program=command) as server:
        assert health(server.port) == 0
