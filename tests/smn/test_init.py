"""`import smn` is light, and says which extra a name needs."""

import subprocess
import sys
from pathlib import Path

import pytest

import smn

ROOT = Path(__file__).parents[2]


def in_python(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_importing_smn_loads_neither_torch_nor_a_client():
    assert set(in_python("import smn, sys; print(*sys.modules)")) & {"torch", "numpy", "httpx2", "typer"} == set()


def test_a_client_loads_no_torch():
    assert (
        set(in_python("import smn, sys; smn.Client, smn.AsyncClient; print(*sys.modules)")) & {"torch", "timm"} == set()
    )


@pytest.mark.parametrize("name", smn.__all__)
def test_every_public_name_is_there(name):
    assert getattr(smn, name) is not None and name in dir(smn)


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        smn.Server  # noqa: B018


def test_without_the_extra_the_embedder_is_there_and_a_client_names_it():
    code = (
        "import sys\n"
        "for missing in ('httpx2', 'fastapi', 'pydantic_settings', 'redis'):\n    sys.modules[missing] = None\n"
        "import smn\nassert smn.Embedder and smn.Collection and smn.Embeddings\n"
        "try:\n    smn.Client\nexcept smn.InvalidArgument as error:\n    print(error)"
    )
    assert " ".join(in_python(code)) == (
        "smn.Client needs httpx2, of the extra service: uv pip install -e '.[service]' in a clone"
    )
