"""What can be known of the image without an engine: its files, its commands, its entry point, its health check."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from dockerfile import BUILD, FINAL, ROOT, argument_of, copies, environment, instructions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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
    assert all("--build-constraint constraints.txt" in line for line in installs)


def pins(text):
    """name -> (version, hashes) of a file of constraints."""
    found = re.findall(r"^([a-z0-9._-]+)==(\S+)((?: \\\n    --hash=\S+)*)$", text, re.MULTILINE)
    return {name: (version, set(re.findall(r"--hash=(\S+)", hashes))) for name, version, hashes in found}


PINS = pins((ROOT / "constraints.txt").read_text())


def test_every_pin_has_its_hashes_and_no_address():
    text = (ROOT / "constraints.txt").read_text()
    assert len(PINS) == len(re.findall(r"^\w", text, re.MULTILINE)) > 100
    assert all(
        hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes) for _, hashes in PINS.values()
    )
    assert "://" not in text


def test_the_constraints_are_those_of_the_project():
    """After a change of pyproject.toml: `make constraints UPGRADE=`. It follows what is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        Requirement(line) for line in [*project["dependencies"], *(one for lines in extras.values() for one in lines)]
    ]
    seen = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        assert name in PINS, f"{requirement}: run `make constraints UPGRADE=`"
        assert requirement.specifier.contains(PINS[name][0], prereleases=True), f"{requirement}: run `make constraints`"
        if key in seen:
            continue
        seen.add(key)
        try:
            told = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of an extra that is not installed here
            continue
        for line in told.requires or []:
            other = Requirement(line)
            if other.marker and any(other.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                other.marker = None
            wanted.append(other)
    assert {name for name, _ in seen} >= {"torch", "redis", "uv", "hatchling"}


@pytest.fixture
def install(tmp_path):
    """`install(DEVICE)`: the words of the Dockerfile's installation, and the constraints that it leaves."""
    (command,) = [argument for name, argument in BUILD if name == "RUN" and "--extra" in argument]
    words = tmp_path / "uv"
    words.write_text('#!/bin/sh\necho "$@"\n')
    words.chmod(0o755)

    def run(device):
        shutil.copy(ROOT / "constraints.txt", tmp_path)
        given = {"DEVICE": device, "EXTRAS": "service,otel", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", command], env=given, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.split(), pins((tmp_path / "constraints.txt").read_text())

    return run


def test_every_file_that_is_installed_must_have_its_hash(install):
    words, left = install("cuda")
    assert "--require-hashes" in words and "--torch-backend" not in words and left == PINS
    assert words.count("--extra") == 2


def test_the_cpu_build_takes_torch_and_torchvision_from_one_index(install):
    """`--torch-backend` moves both, to files of other hashes; all others keep theirs."""
    words, left = install("cpu")
    assert words[words.index("--torch-backend") + 1] == "cpu" and "--require-hashes" not in words
    assert left == {name: (version, set() if name in ("torch", "torchvision") else hashes)
                    for name, (version, hashes) in PINS.items()}  # fmt: skip


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


def lend_bytecode(target):
    """Link what is compiled here into an environment of the same files; Python holds it against each source itself.

    Compiling torch and the rest anew takes longer than all else that the build stage does here.
    """
    ours, (theirs,) = Path(sysconfig.get_path("purelib")), target.glob("lib/python*/site-packages")
    for package in ours.iterdir():
        if package.is_dir() and (theirs / package.name).is_dir():
            for compiled in package.rglob("__pycache__/*.pyc"):
                place = theirs / compiled.relative_to(ours)
                if place.parents[1].is_dir() and not place.exists():
                    place.parent.mkdir(exist_ok=True)
                    place.symlink_to(compiled)


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
            command = argument.replace("/opt/smn", str(target))
            command = command.replace("pip install --no-cache-dir --require-hashes -r uv.txt", "uv --version")
            done = subprocess.run(
                ["sh", "-c", command], cwd=source, env=here, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    lend_bytecode(target)
    command = target / "bin" / "smn"
    assert "Learn a mask" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    with ServerProcess([*flags, "--registry", tmp_path / "registry"], tmp_path, program=command) as server:
        assert health(server.port) == 0
