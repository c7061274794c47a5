"""The table of statistics, map and mask is made of spaces that are what their names say; the head under the map."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from benchmarks import statistics
from benchmarks.under_map import UnderMap, WhitenedHead
from smn_core import bits
from smn_core.maskfile import read_mask, write_mask
from smn_core.verbs.options import model_options
from tests.training.builders import CROPS, SWAV, World, build_world, config, enliven
from training.evaluation.controls import make_all_on
from training.within import scatter_within


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Digits, and a small ResNet whose norms have statistics that are not 0 and 1."""
    built = build_world(tmp_path_factory.mktemp("world"))
    return enliven(built, tmp_path_factory.mktemp("living"))


def run(world: World, *more: object) -> tuple[list[dict[str, object]], list[str]]:
    """The rows and the table that the command prints."""
    app = Typer()
    app.command()(model_options(statistics.main))
    words = ["--data", world.data, *world.flags("test_resnet"), "--bank", 120, "--queries", 60, "--mapped", 20, *more]
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    lines = result.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")], [x for x in lines if x.startswith("|")]


def test_every_space_is_the_file_that_its_name_says(world: World, tmp_path: Path):
    backbone = world.backbone("test_resnet")
    own = {name: backbone.model.get_buffer(name).numpy() for name in backbone.layout.buffers}
    rng = np.random.default_rng(0)
    packed = [bits.pack(rng.random(tensor.n_weights) < 0.95) for tensor in backbone.layout]
    write_mask(replace(make_all_on(backbone), packed=np.concatenate(packed)), tmp_path / "m.smn")
    work = tmp_path / "work"
    rows, table = run(world, "--work", work, "--mask", f"m={tmp_path / 'm.smn'}", "--test", "--out", tmp_path / "rows")
    names = [row["space"] for row in rows]
    assert names == [
        "frozen", "map", "statistics", "statistics + map", "mask m", "mask m + map", "mask m + statistics",
        "mask m + statistics + map",
    ]  # fmt: skip
    assert len(table) == 2 + len(rows)
    assert [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()] == rows
    for row in rows[1:]:
        mask = read_mask(work / f"{statistics._file(str(row['space']))}.smn", backbone.layout)
        assert (mask.n_off > 0) == ("mask" in str(row["space"])) == (row["off"] != 0)
        assert bool(mask.state) == ("statistics" in str(row["space"]))
        assert (mask.affine is not None) == ("map" in str(row["space"]))
        if mask.state:
            assert any((mask.state[name] != own[name]).any() for name in own)
    frozen = rows[0]
    assert frozen["test"]["knn_over_frozen"] == [0, 0]  # type: ignore[index]
    assert {row["control"] for row in rows} <= {"frozen", "map", "statistics", "statistics + map"}
    again, _ = run(world, "--work", work)  # files that are there are taken as they are; the test split stays closed
    assert "test" not in again[0]
    assert [row["folds"] for row in again] == [{**row["folds"]} for row in rows[:4]]  # type: ignore[dict-item]


def test_the_head_under_the_map_sees_views_that_scatter_alike_in_all_directions():
    recipe = config(swav=SWAV)
    assert CROPS.n_big + CROPS.n_small == 3
    objective = UnderMap(recipe, power=1.0)
    swav = objective.make_head(12, 0, 1)
    assert isinstance(swav.head, WhitenedHead)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 12, generator=generator) * 3
    noise = torch.randn(3, 40, 12, generator=generator) * torch.linspace(0.1, 2, 12)
    views = images + noise
    batches = [views[:, :16], views[:, 16:32], views[:, 32:]]  # as they are embedded: batch by batch, view by view
    objective.calibrate(swav, torch.cat([part.reshape(-1, 12) for part in batches]))
    seen = (views - swav.head.centre) @ swav.head.whitening.T
    before, after = (np.linalg.eigvalsh(scatter_within(z.numpy())) for z in (views, seen))
    assert after[-1] / after[0] < before[-1] / before[0] / 5
    projected = swav.head.project(views[0])
    torch.testing.assert_close(projected, torch.nn.functional.normalize(swav.head.projection(seen[0]), dim=1))
