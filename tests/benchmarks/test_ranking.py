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
from training.evaluation.controls import make_all_on
from training.evaluation.paired import Pool, measure


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


def space(noise: float) -> ranking.Space:
    """Labelled embeddings and four views of images of six kinds, each kind around a point of its own."""
    rng, kinds = np.random.default_rng(0), np.repeat(np.eye(6, 12), 20, axis=0)

    def draw() -> np.ndarray:
        return (kinds + noise * rng.standard_normal(kinds.shape)).astype(np.float32)

    a, b, c, d = (draw() for _ in range(4))
    return ranking.Space(draw(), measure(Pool((a, b), (c, d))))


def test_a_space_with_less_noise_gains_by_labels_and_by_every_sign_that_ranks():
    labels = np.repeat(np.arange(6), 20)
    row = ranking.row_of("digits", "a/mask", 7, labels, (space(0.6), space(0.6)), (space(0.6), space(0.3)))
    assert (row["off"], row["knn"], row["neighbours"], row["evidence"]) == (7, 0, 0, 0)
    for gain in ("knn", "neighbours", "margin", "evidence"):
        assert row[f"{gain} under a map"] > 0


def test_every_mask_that_switches_a_weight_off_has_a_line(world: World, tmp_path: Path):
    backbone, rng = world.backbone(), np.random.default_rng(0)
    words = ["--data", world.data, *world.flags(), "--judged", 40, "--most", 100, "--out", tmp_path / "rows.jsonl"]
    masks = {"few": 0.999, "many": 0.5, "none": 1.0}
    for name, density in masks.items():
        path = tmp_path / f"{name}.smn"
        write_mask(random_mask(backbone.layout, density, rng, backbone) if density < 1 else make_all_on(backbone), path)
        words += ["--mask", path]
    app = Typer()
    app.command()(model_options(ranking.main))
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    few, many = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert 0 < few["off"] < many["off"]
    assert [row["mask"].rpartition("/")[2] for row in (few, many)] == ["few", "many"]
    assert "\nneighbours: knn " in result.stdout
