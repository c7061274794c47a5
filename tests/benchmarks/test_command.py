"""`smn bench`: a registry of questions, each answered by a process of its own, rows kept as they come."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.all import BENCHES, Bench, Failed, find, run
from benchmarks.command import line
from smn_core.errors import InvalidArgument

ROOT = Path(__file__).parents[2]
SCHEMA = {"bench", "variant", "params", "metric", "unit", "p50", "p20", "p80", "n", "commit", "device", "torch"}


def smn(*words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{before}\nsys.argv = ['smn', *sys.argv[1:]]\nimport smn\nsmn.main()"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.name)
def test_every_benchmark_has_a_module(bench):
    assert (ROOT / "benchmarks" / bench.module.replace(".", "/")).with_suffix(".py").exists() or (
        importlib.util.find_spec(f"benchmarks.{bench.module}.__main__") is not None
    )
    assert bench.question.endswith("?")


def test_names_are_unique_and_found_in_the_order_of_the_registry():
    names = [bench.name for bench in BENCHES]
    assert len(set(names)) == len(names)
    assert [bench.name for bench in find(["set,hot", "swap"])] == ["swap", "hot", "set"]
    assert find([]) == list(BENCHES)


def test_an_unknown_name_names_near_ones():
    with pytest.raises(InvalidArgument, match=r"'trafic'.*traffic"):
        find(["trafic"])


def test_a_benchmark_runs_in_its_own_process_and_keeps_its_rows(tmp_path):
    hot = Bench("hot", "?", "engine", quick=("--only=hot", "--model=test_vit", "--quick"))
    rows = list(run(hot, quick=True, out=tmp_path / "hot.jsonl"))
    kept = [json.loads(text) for text in (tmp_path / "hot.jsonl").read_text().splitlines()]
    assert rows == kept
    assert {(row["metric"], row["params"]["batch"]) for row in rows} >= {
        ("images/s, ratio to plain timm", 1),
        ("time an image", 8),
    }
    for row in rows:
        assert set(row) == SCHEMA | {"machine", "command", "date"}
        assert row["p20"] <= row["p50"] <= row["p80"]
        assert row["command"] == "python -m benchmarks.engine --only=hot --model=test_vit --quick"
        assert "ratio" in row["metric"] or "time" in line(row)


def test_a_benchmark_that_breaks_is_an_error(tmp_path, capfd):
    with pytest.raises(Failed, match="gone ended with exit code 1"):
        list(run(Bench("gone", "?", "no_such_module"), quick=False, out=tmp_path / "gone.jsonl"))
    assert "no_such_module" in capfd.readouterr().err


def test_the_verb_lists_names_and_refuses_others():
    listed = smn("bench", "--list", "--json")
    assert [row["name"] for row in json.loads(listed.stdout)] == [bench.name for bench in BENCHES]
    refused = smn("bench", "--only", "swp")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "smn: error: --only 'swp': no benchmark has that name; near it: swap\n"


def test_the_verb_says_where_benchmarks_are_when_they_are_not_installed():
    refused = smn("bench", "--list", before="sys.modules['benchmarks'] = None")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "smn: error: the benchmarks are not installed: `make setup` in a clone of the repository"
    ]
