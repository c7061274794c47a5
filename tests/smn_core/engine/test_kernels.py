"""The kernels pass their tests in Triton's interpreter, and nothing but what needs them knows triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smn_core.engine import Engine
from smn_core.engine.device.ways import Ways
from tests.smn_core.builders import TINY_VIT, lively

REPOSITORY = Path(__file__).parents[3]
TESTS = sorted(path.name for path in (REPOSITORY / "tests" / "kernels").glob("test_*.py"))


@pytest.mark.parametrize("name", TESTS)
def test_the_kernels_pass_in_the_interpreter(name):
    """In a process of its own: the variable must be set before triton is imported, and must not stay."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"tests/kernels/{name}", "-p", "no:cacheprovider"],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_engine_without_triton_says_so_once(monkeypatch, caplog):
    """Where triton is missing, torch's operations do, and the log has the reason."""
    for name in [name for name in sys.modules if name.startswith("smn_core.engine.kernels.")]:
        if name.endswith((".unpack", ".linear")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    engine = Engine(lively(TINY_VIT), ways=Ways(kernels=True))
    assert engine._theta.kernels is None
    assert caplog.text.count("torch's operations instead of Triton's kernels") == 1


def test_a_cpu_takes_no_kernels():
    """A plain engine on the CPU imports no triton."""
    code = (
        "import sys, torch; from tests.smn_core.builders import *; from smn_core.engine.engine import Engine;"
        "Engine(lively(TINY_VIT)); print('smn_core.engine.kernels.linear' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
