"""What ranks masks without labels is held against what their labels say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks import ranking
from benchmarks.masks import random_mask
from smn_core.maskfile import write_mask
from smn_core.verbs.options import model_options
from tests.training.builders import World, build_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


def test_a_sign_that_orders_masks_as_the_gain_does_correlates_fully():
    rows = [
        {"data": "a", "mask": str(i), "up": i, "down": -i, "flat": 1, "knn": i / 10, "knn under a map": -i}
        for i in range(4)
    ]
    assert ranking.correlate(rows) == [
        "up: knn +1.00, knn under a map -1.00",
        "down: knn -1.00, knn under a map +1.00",
        "flat: the same for all masks",
    ]


def test_labels_that_embeddings_tell_apart_are_all_found():
    z = np.repeat(np.eye(3, 8, dtype=np.float32), 20, axis=0)
    assert ranking.score_knn(z, np.repeat(np.arange(3), 20)) == 1.0


def test_a_mask_of_more_noise_loses_more_by_labels_and_by_signs(world: World, tmp_path: Path):
    backbone, rng = world.backbone(), np.random.default_rng(0)
    words = ["--data", world.data, *world.flags(), "--judged", 40, "--most", 100, "--out", tmp_path / "rows.jsonl"]
    for density in (0.999, 0.3):
        path = tmp_path / f"{density}.smn"
        write_mask(random_mask(backbone.layout, density, rng, backbone), path)
        words += ["--mask", path]
    app = Typer()
    app.command()(model_options(ranking.main))
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    few, many = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert few["off"] < many["off"]
    assert few["neighbours"] > many["neighbours"]
    assert few["knn"] > many["knn"]
    assert "neighbours: knn +1.00" in result.stdout
