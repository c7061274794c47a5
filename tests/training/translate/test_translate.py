"""`smn translate` as a user meets it: a map in a file, what it costs, and what cannot be translated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from smn_core.engine import Engine
from smn_core.maskfile import read_mask, write_mask
from smn_core.spaces import space_of_mask
from tests.training.builders import World, digits
from training.data import open_split
from training.features import embed_each


@pytest.fixture(scope="module")
def mask(world: World, make_mask, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "m.smn"
    write_mask(make_mask(world.backbone(), 0.97, with_preprocess=True), path)
    return path


def test_the_map_moves_old_vectors_near_the_new_ones_and_names_both_spaces(world, mask, tmp_path, smn_run):
    out = tmp_path / "map.npz"
    ran = smn_run(
        "translate", "--from", "root", "--to", mask, "--data", world.data, "--out", out, "--json", *world.flags()
    )
    assert ran.code == 0, ran.err
    told, found = json.loads(ran.out), np.load(out)
    backbone, task = world.backbone(), read_mask(mask)
    spaces = [space_of_mask(backbone, None), space_of_mask(backbone, task)]
    assert [str(found["from"]), str(found["to"])] == [told["from"], told["to"]] == spaces
    engine = Engine(backbone, slots=1)
    engine.prepare(task)
    old, new = (f.z for f in embed_each(engine, [None, task.digest], open_split(str(world.data), "test"), 32))
    moved = (old - found["mean_from"]) @ found["matrix"].T + found["mean_to"]
    assert np.linalg.norm(moved - new) < 0.8 * np.linalg.norm(old - new)
    recall = told["recall_at_10"]
    assert recall["untouched"] <= recall["translated"] <= 1
    assert told["images"]["held_out"] == len(new)


def test_one_space_is_not_translated_into_itself(world, mask, tmp_path, smn_run):
    ran = smn_run("translate", "--from", mask, "--to", mask, "--data", world.data, "--out", tmp_path / "m.npz",
                  *world.flags())  # fmt: skip
    assert ran.code == 2
    assert "--from and --to are one space, smn1:" in ran.err
    assert not (tmp_path / "m.npz").exists()


def test_a_place_that_cannot_be_written_is_refused_before_an_image_is_embedded(world, mask, tmp_path, refused):
    words = ["translate", "--from", "root", "--to", mask, "--data", world.data]
    assert "the folder" in refused(*words, "--out", tmp_path / "no" / "m.npz", *world.flags())


def test_too_few_images_are_refused_before_one_is_embedded(world, mask, tmp_path, refused):
    np.savez(tmp_path / "one.npz", x_train=digits()["x_train"][:1])
    words = ["translate", "--from", "root", "--to", mask, "--data", tmp_path / "one.npz", "--out", tmp_path / "m.npz"]
    assert "too few images: 1 to fit a map" in refused(*words, *world.flags())


def test_a_map_goes_to_an_npz_file(world, mask, tmp_path, smn_run):
    ran = smn_run("translate", "--from", "root", "--to", mask, "--data", world.data, "--out", tmp_path / "m.npy",
                  *world.flags())  # fmt: skip
    assert ran.code == 2
    assert ".npz" in ran.err
