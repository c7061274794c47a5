"""Files of kinds that are not read are counted aloud, by every verb that learns from a folder or judges by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from smn_core.maskfile import write_mask
from tests.training.builders import World, digits

N = 48
SAID = "4 files of other kinds are not read: 3 .mov, 1 .txt"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Digits in class folders, and four files beside them that are none."""
    folder, found = tmp_path_factory.mktemp("photos"), digits()
    for i in range(N):
        path = folder / ("even" if found["y_train"][i] % 2 == 0 else "odd") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(found["x_train"][i]).save(path)
    for name in ("even/a.mov", "odd/b.MOV", "c.mov", "notes.txt", ".hidden"):
        (folder / name).write_bytes(b"other")
    return folder


@pytest.fixture(scope="module")
def mask(world: World, make_mask, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "m.smn"
    write_mask(make_mask(world.backbone(), 0.97, with_preprocess=True), path)
    return path


TINY = ["--recipe", "tiny", "--set", "steps=2", "--set", "batch_size=16", "--set", "head_steps=1", "--workers", "0"]
VERBS = {
    "probe": ["--out", "OUT.smn"],
    "translate": ["--from", "root", "--to", "MASK", "--out", "OUT.npz"],
    "evaluate": ["--folds", "2", "--no-views"],
    "train": ["--out", "OUT.smn", *TINY, "--set", "swav.prototypes=16"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_counts_what_it_does_not_read(world, photos, mask, tmp_path, smn_run, verb):
    words = [str(mask) if word == "MASK" else word.replace("OUT", str(tmp_path / "out")) for word in VERBS[verb]]
    ran = smn_run(verb, "--data", photos, *words, "--threads", "1", *world.flags())
    assert ran.code == 0, ran.err
    said = SAID.replace(" read:", " read of the train split:") if verb == "evaluate" else SAID
    assert said in ran.err.splitlines()


def test_json_has_the_counts_too(world, photos, mask, tmp_path, smn_run):
    ran = smn_run("translate", "--from", mask, "--to", "root", "--data", photos, "--out", tmp_path / "m.npz", "--json",
                  *world.flags())  # fmt: skip
    assert json.loads(ran.out)["other_files"] == {".mov": 3, ".txt": 1}
    ran = smn_run("evaluate", "--data", photos, "--folds", "2", "--no-views", "--json", *world.flags())
    assert json.loads(ran.out)["other_files"] == {"train": {".mov": 3, ".txt": 1}}


def test_a_set_without_other_files_is_not_spoken_of(world, mask, tmp_path, smn_run):
    ran = smn_run("evaluate", "--data", world.data, "--folds", "2", "--no-views", "--probe", "knn", *world.flags())
    assert ran.code == 0, ran.err
    assert "other kinds" not in ran.err


def test_a_run_ends_well_beside_an_unreadable_image_whose_name_is_not_utf_8(world, photos, tmp_path, smn_run):
    folder = tmp_path / "odd"
    shutil.copytree(photos, folder)
    (folder / "even" / "sur\udcff.png").write_bytes(b"no image")
    words = ["--data", folder, "--out", tmp_path / "m.smn", *TINY, "--set", "swav.prototypes=16"]
    ran = smn_run("train", *words, "--threads", "1", *world.flags())
    assert ran.code == 1, ran.err
    assert "- skipped images: 1\n" in (page := (tmp_path / "m.run" / "README.md").read_text("utf-8"))
    assert "sur\\xff.png: the 8 bytes are not an image" in page
