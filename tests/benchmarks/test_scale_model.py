"""The capacity model finds its measured figures in the rows of the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scale_model
from benchmarks.scale_model import measured


@pytest.mark.parametrize(
    ("bench", "variant", "metric"),
    [
        ("engine", "zipf:1.5", "images/s, ratio to one mask"),
        ("http", "load, in this process", "fetch"),
        ("http", "server", "decode"),
    ],
)
def test_what_it_stands_on_is_among_the_kept_rows(bench: str, variant: str, metric: str):
    assert measured(bench, "vit_tiny_patch16_224", variant=variant, metric=metric) > 0


def test_the_last_row_counts_and_rows_without_a_model_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [
        {"variant": "a", "metric": "m", "params": {"model": "x"}, "p50": 1.0},
        {"variant": "a", "metric": "m", "params": {"model": "x"}, "p50": 2.0},
        {"variant": "a", "metric": "m", "params": {"model": "y"}, "p50": 3.0},
        {"variant": "a", "metric": "m", "params": {"requests": 9}, "p50": 4.0},
    ]
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(scale_model, "RESULTS", tmp_path)
    assert measured("kept", "x", variant="a", metric="m") == 2.0


def test_a_missing_row_names_the_benchmark_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "kept.jsonl").write_text("", encoding="utf-8")
    monkeypatch.setattr(scale_model, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"run python -m benchmarks\.kept"):
        measured("kept", "x", variant="a", metric="m")
