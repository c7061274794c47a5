"""A run's folder has one run at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from smn_core.errors import Conflict
from tests.training.builders import World, train_command
from training.hold import hold_folder

HOLDING = """
import signal, sys
from pathlib import Path
from training.hold import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_a_second_run_into_a_folder_is_refused_until_the_first_has_ended_however(tmp_path, world: World, smn_run):
    """Also one that says --overwrite; it touches nothing. A killed run holds nothing."""
    out = tmp_path / "m.smn"
    folder = tmp_path / "m.run"
    folder.mkdir()
    (folder / "last.ckpt").write_bytes(b"of the first run")
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == "held\n"
            refused = smn_run(*train_command(world, out), "--overwrite")
            assert refused.code == 2 and f"another run learns into {folder}" in refused.err.splitlines()[-1]
            assert (folder / "last.ckpt").read_bytes() == b"of the first run" and not out.exists()
        finally:
            os.kill(first.pid, signal.SIGKILL)
    assert smn_run(*train_command(world, out), "--overwrite").code == 0
    assert out.exists()


def test_an_empty_folder_does_not_stay(tmp_path):
    with pytest.raises(Conflict), hold_folder(tmp_path / "a/b"), hold_folder(tmp_path / "a/b"):
        pass
    assert not (tmp_path / "a/b").exists()
    with hold_folder(tmp_path / "a/b"):
        (tmp_path / "a/b/kept").touch()
    assert (tmp_path / "a/b/kept").exists()
