"""The shape of the source: who may know what, who imports what, how long a module is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
PACKAGES = ("smn", "smn_core", "service", "training")
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
CORE = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for path in (REPOSITORY / "smn_core").rglob("*.py")
    if path.stem[0] != "_" and path.name not in ("linear.py", "unpack.py")  # Triton is not everywhere
)
MAX_LINES = 400


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def names(path: Path) -> set[str]:
    """Every name, attribute, keyword and imported name of a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)) | ast.alias(name=name):
                found.add(name)
    return found


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_only_the_settings_of_the_service_read_the_environment(path):
    """What a module does is what it is told: no hidden switch in an environment variable."""
    # The command asks whether its user tunes malloc himself, before anything is imported.
    if path not in (REPOSITORY / "service" / "settings.py", REPOSITORY / "smn" / "command.py"):
        assert names(path) & {"environ", "environb", "getenv", "getenvb", "putenv", "load_dotenv"} == set()


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_only_bits_knows_the_bit_order(path):
    """Packing and unpacking happen in one module."""
    if path != REPOSITORY / "smn_core" / "bits.py":
        assert names(path) & {"bitorder", "packbits", "unpackbits", "bitarray", "endian"} == set()


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_has_one_subject(path):
    """A module that grew past any single subject is to be cut."""
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_says_what_it_is(path):
    """Every module begins with a docstring."""
    source = path.read_text()
    assert not source.strip() or ast.get_docstring(ast.parse(source))


def test_the_core_loads_no_server_and_no_training():
    """All of smn_core imports without HTTP, Redis, Lightning or scikit-learn, and draws only when asked to."""
    tops = {name.split(".")[0] for name in loaded(f"import {', '.join(CORE)}")}
    heavy = {"fastapi", "starlette", "uvicorn", "redis", "pydantic_settings", "lightly", "pytorch_lightning", "sklearn"}
    assert tops & (heavy | {"matplotlib", "service", "training"}) == set()


def test_the_command_starts_without_torch():
    """`smn --help` and declaring every verb import neither torch nor timm: it answers at once."""
    run = "import sys, smn\nsys.argv = ['smn', '--help']\ntry:\n    smn.main()\nexcept SystemExit:\n    pass"
    assert loaded(run) & {"torch", "timm", "torchvision", "numpy", "PIL", "fastapi", "sklearn", "rich"} == set()


def test_the_service_starts_without_what_learning_needs():
    """A server imports neither lightly nor Lightning nor scikit-learn, nor what draws or measures."""
    tops = {name.split(".")[0] for name in loaded("import service.app, service.listen, service.__main__")}
    assert (
        tops & {"lightly", "pytorch_lightning", "lightning", "sklearn", "matplotlib", "training", "benchmarks"} == set()
    )


@pytest.mark.parametrize("module", ["errors", "spec", "verbs.options", "files"])
def test_the_light_modules_are_light(module):
    """What command lines and settings are made of loads no model library."""
    assert loaded(f"import smn_core.{module}") & {"torch", "timm", "numpy"} == set()
