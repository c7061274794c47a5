"""`smn bench paper`: three settings, controls and paired errors from one command that goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch

import smn
from benchmarks.paper.probe import predict_by_torch
from benchmarks.paper.scores import Scored
from benchmarks.paper.table import make_page, make_rows
from benchmarks.paper.wanted import choose_recipes, parse_settings, parse_skip
from smn_core.errors import InvalidArgument
from smn_core.maskfile import read_mask
from tests.training.builders import N_TEST, World, build_world, digits
from training.checkpoints import CHECKPOINT
from training.evaluation.probes import linear

SMALL = [
    "root.steps=6", "root.batch_size=16", "root.head_steps=2", "root.swav.prototypes=16", "root.lr=0.02",
    "supervised.steps=3", "supervised.batch_size=16", "supervised.head_steps=1", "finetune.steps=3",
    "finetune.batch_size=16", "finetune.head_steps=1", "experts.steps=2", "experts.batch_size=8",
]  # fmt: skip


def words(world: World, out, *more: object) -> list[str]:
    settings = [word for text in SMALL for word in ("--setting", text)]
    few = ["--labels", 2, "--seeds", 1, "--experts", 2, "--recipe", "tiny", "--workers", 0, "--threads", 1]
    return ["bench", "paper", "--data", str(world.data), "--out", str(out), *world.flags(), *settings, *map(str, few),
            *map(str, more)]  # fmt: skip


def ran(*args: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["smn", *args])
        with pytest.raises(SystemExit) as stopped, torch.random.fork_rng(devices=[]):
            smn.main()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """The folder of a whole table of digits."""
    out = tmp_path_factory.mktemp("made") / "digits"
    assert ran(*words(world, out)) == 0
    return out


def test_the_table_has_the_three_settings_their_controls_and_what_each_takes(made):
    found = json.loads((made / "paper.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert not found["failed"]
    assert {name for name, row in rows.items() if row["setting"] == 1} == {
        "frozen", "frozen + map", "mask", "mask + map", "random flips", "supervised mask, all labels",
        "full fine-tuning, all labels",
    }  # fmt: skip
    assert rows["mask"]["bytes"] == (made / "root.smn").stat().st_size
    assert rows["mask"]["density"] == rows["random flips"]["density"] == read_mask(made / "root.smn").density < 1
    assert rows["mask + map"]["control"]["name"] == "frozen + map"
    assert "supervised mask on the few labels" in rows
    assert rows["full fine-tuning on the few labels"]["few"]["2"]["n"] == 1
    for clusters in ("mixture", "random"):
        assert rows[f"{clusters}: unconditional as stored (pca)"]["control"]["name"] == "root, whitened"
    assert rows["root"]["knn"]["after"] == rows["mask"]["knn"]["after"]


def test_every_change_is_paired_with_the_frozen_backbone(made):
    found = json.loads((made / "paper.json").read_text())
    before, after = (np.load(made / "scores" / f"{name}.npz") for name in ("frozen", "mask-map"))
    apart = after["knn"] - before["knn"]
    told = next(row for row in found["rows"] if row["name"] == "mask + map")["knn"]
    assert told["n"] == len(apart) == N_TEST
    assert told["change"] == pytest.approx(apart.mean(), abs=1e-6)
    assert told["error"] == pytest.approx(apart.std(ddof=1) / np.sqrt(N_TEST), abs=1e-6)


def test_the_page_has_a_table_for_each_setting_and_the_papers_row(made):
    page = (made / "paper.md").read_text()
    for heading in ("## 1. No labels", "## 2. Few labels", "## 3. Semi-supervised cascades", "## The paper's row"):
        assert heading in page
    cells = 0
    for line in page.splitlines():
        cells = line.count("|") if line.startswith("| |") else cells
        if line.startswith("| ") and not line.startswith("| |"):
            assert line.count("|") == cells, line
    assert "| frozen |" in page


def test_the_same_command_goes_on_and_another_one_is_refused(made, world, capsys):
    scores = {path: path.stat().st_mtime_ns for path in (made / "scores").iterdir()}
    page = (made / "paper.md").read_text()
    assert ran(*words(world, made)) == 0
    said = capsys.readouterr().err
    assert said.count("finished before") == 7  # root, two with all labels, two with few, two cascades
    assert {path: path.stat().st_mtime_ns for path in (made / "scores").iterdir()} == scores
    assert (made / "paper.md").read_text() == page
    assert ran(*words(world, made, "--experts", 3)) == 2
    assert "begun with another experts" in capsys.readouterr().err


def test_a_dry_run_tells_what_will_be_done_and_writes_nothing(world, tmp_path, capsys):
    assert ran(*words(world, tmp_path / "none", "--skip", "few,finetune", "--dry-run", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    names = [piece["name"] for piece in told["work"]]
    assert names == ["root", "supervised", "cascade, mixture", "cascade, random", "score"]
    assert "6 steps of 16 images" in told["work"][0]["what"]
    assert told["seconds"] == pytest.approx(sum(piece["seconds"] for piece in told["work"]))
    assert all(0 < piece["seconds"] < 600 for piece in told["work"])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_work_is_named_and_costs_nothing_else(made, world, tmp_path):
    out = tmp_path / "digits"
    shutil.copytree(made, out)
    shutil.rmtree(out / "cascade-random")
    (out / "root.run" / CHECKPOINT).unlink()
    assert ran(*words(world, out)) == 1
    found = json.loads((out / "paper.json").read_text())
    assert list(found["failed"]) == ["cascade-random"]
    assert "there is no checkpoint" in found["failed"]["cascade-random"]
    assert {"frozen", "mask + map", "root", "mixture: concatenated"} <= {row["name"] for row in found["rows"]}
    assert "**Not done: cascade-random**" in (out / "paper.md").read_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_settings(["steps=3"]), "write PART.NAME=VALUE"),
        (lambda: parse_skip("root"), "choose supervised"),
        (lambda: choose_recipes("resnet50", root="small-vit-supervised"), "objective supervised, and swav is wanted"),
    ],
)
def test_a_wrong_option_names_its_fix(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_a_resnet_has_the_papers_recipes():
    assert vars(choose_recipes("resnet50")) == {
        "root": "resnet50-swav", "supervised": "resnet-supervised", "finetune": "resnet-finetune",
    }  # fmt: skip
    assert choose_recipes("vit_tiny_patch16_224").root == "small-vit"


def test_the_probe_by_torch_is_that_of_scikit_learn():
    found = digits()
    x, y = (found[f"{name}_train"] for name in "xy")
    z = x[:, ::4, ::4, 0].reshape(len(x), -1).astype(np.float32) / 255
    known, asked = slice(0, 200), slice(200, None)
    by_torch = predict_by_torch(z[known], y[known], z[asked], torch.device("cpu"))
    by_sklearn = linear(z[known], y[known], z[asked])
    assert (by_torch == by_sklearn).mean() > 0.95
    assert (by_torch == y[asked]).mean() > 0.8


def test_few_labels_are_paired_by_draw():
    def scored(name, *draws):
        right = {f"few/0.01/{n}": np.array(draw, float) for n, draw in enumerate(draws)}
        return Scored({"name": name, "setting": 1, "bytes": 0}, right)

    rows = make_rows([scored("frozen", [0, 0, 0, 1], [0, 1, 1, 1]), scored("mask", [0, 0, 1, 1], [1, 1, 1, 1])])
    few = rows[1]["few"]["0.01"]
    assert (few["after"], few["change"], few["error"], few["wins"]) == (0.75, 0.25, 0.0, 2)
    assert few["deviation"] == pytest.approx(np.std([0.5, 1.0], ddof=1))


def test_a_page_names_what_was_not_done_and_has_the_papers_row():
    right = {"knn": np.array([1.0, 0, 1, 1]), "linear": np.array([1.0, 1, 1, 0])}
    rows = make_rows([Scored({"name": "frozen", "setting": 1, "bytes": 0}, right)])
    page = make_page("dtd", {"seed": 0}, rows, {"few/finetune-5-0.safetensors": "too few images"})
    assert "| the paper, ResNet-50 | 0.693 | 0.674 |" in page
    assert "**Not done: few/finetune-5-0.safetensors**: too few images" in page
