"""The scripts of examples/ run as their first lines say, one after the other, and do what they show."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.redis_server import free_port
from smn_core.maskfile import read_mask

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BIN = Path(sys.executable).parent


def run(*words):
    """What a script printed."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SMN_")}
    done = subprocess.run(
        list(map(str, words)),
        cwd=ROOT,
        env={**plain, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the first example has learned a mask; fewer steps than it would take by itself."""
    folder = tmp_path_factory.mktemp("examples")
    few = ["--set", "steps=4", "--set", "head_steps=1", "--set", "lr=0.5", "--workers", "0", "--threads", "1"]
    printed = run(sys.executable, EXAMPLES / "train_on_a_folder.py", folder, *few)
    assert "density" in printed
    return folder


def test_the_training_example_learns_a_mask_that_switches_weights_off(folder):
    mask = read_mask(folder / "photos.smn")
    assert 0 < mask.n_off < mask.layout.n_weights
    assert mask.metadata["dataset"] == "photos"


def test_the_python_example_embeds_with_and_without_the_mask(folder):
    printed = run(sys.executable, EXAMPLES / "embed_in_python.py", folder)
    found = re.findall(r"^(\d{3}\.png): .* (-?\d\.\d{4})$", printed, re.MULTILINE)
    assert [name for name, _ in found] == ["000.png", "001.png", "002.png", "003.png"]
    assert all(float(similarity) < 0.9999 for _, similarity in found)


def test_the_serving_example_pushes_the_mask_and_prints_an_embedding_through_it(folder):
    pushed, *_, answer = run(EXAMPLES / "serve_and_push.sh", folder, free_port()).splitlines()
    digest = read_mask(folder / "photos.smn").digest
    assert pushed.startswith(f"photos@1 {digest} ")
    told = json.loads(answer)
    assert told["mask"]["digest"] == digest
    assert np.array(told["embeddings"]).shape == (1, 4)


@pytest.mark.parametrize(
    "path", sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")), ids=lambda path: path.name
)
def test_an_example_is_read_at_one_sitting(path):
    assert 20 <= len(path.read_text().splitlines()) <= 50
