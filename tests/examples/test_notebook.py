"""The notebook of examples/ runs from top to bottom, and what is kept in it is what such a run shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="no nbclient: uv pip install -e '.[dev]'")
pytest.importorskip("nbclient", reason="no nbclient: uv pip install -e '.[dev]'")
pytest.importorskip("ipykernel", reason="no ipykernel: uv pip install -e '.[dev]'")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "learn_look_serve_search.ipynb"
KEPT = nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    out = tmp_path_factory.mktemp("notebook") / NOTEBOOK.name
    words = [sys.executable, ROOT / "tests" / "support" / "notebooks.py", NOTEBOOK, out]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    return nbformat.read(out, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    return "".join(output.text for cell in code(notebook) for output in cell.outputs if output.output_type == "stream")


def without_numbers(text):
    """What a text says, whatever it counts; ids of spaces and names of pictures are numbers too."""
    return re.sub(r" +", " ", re.sub(r"smn1:[\w:]+|[\d.,/]*\d[\d.,/]*(e-\d+)?(\.png)?", "N", text))


def test_it_shows_what_it_shows_here_but_for_its_numbers(fresh):
    kinds = [[output.output_type for output in cell.outputs] for cell in code(KEPT)]
    assert kinds == [[output.output_type for output in cell.outputs] for cell in code(fresh)]
    assert sum(map(len, kinds)) >= 7
    assert without_numbers(printed(KEPT)) == without_numbers(printed(fresh))


@pytest.mark.parametrize("which", ["kept", "fresh"])
def test_the_mask_is_one_and_the_server_gives_its_vectors(fresh, which):
    said = printed(KEPT if which == "kept" else fresh)
    n_off, n = re.search(r"^([\d,]+) of ([\d,]+) weights are OFF", said, re.MULTILINE).groups()
    assert 0 < int(n_off.replace(",", "")) < int(n.replace(",", ""))
    same, difference = re.search(
        r"in the same space: (\w+); the largest difference of a component: (\S+)", said
    ).groups()
    assert same == "True" and float(difference) < 1e-4
    found = re.findall(r"^ *\d  +(\d\.\d+)  +(\S+\.png) *$", said, re.MULTILINE)
    assert len(found) == 5 and found[0][0] == "1.0000"  # the photo itself
    assert "the server ended with code 0" in said


def test_what_is_kept_is_small_and_was_run_in_order():
    assert NOTEBOOK.stat().st_size < 100_000
    assert [cell.execution_count for cell in code(KEPT)] == list(range(1, len(code(KEPT)) + 1))
    streams = [output for cell in code(KEPT) for output in cell.outputs if output.output_type == "stream"]
    assert {stream.name for stream in streams} == {"stdout"}


def test_it_names_no_place_of_the_machine_where_it_ran():
    assert re.findall(r"(?<![\w.])/(?:tmp|root|home|work|usr|var|Users)\b[^\"\s]*", NOTEBOOK.read_text()) == []
