"""`smn probe` as a user meets it: a mask with a classifier, whose labels are scikit-learn's on the same embeddings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smn_core.engine import Engine
from smn_core.labels import probabilities
from smn_core.maskfile import read_mask, write_mask
from tests.conftest import build_affine
from tests.training.builders import World, digits
from training.data import open_split
from training.features import embed
from training.probe.fit import fit_head


@pytest.fixture(scope="module")
def mapped(world: World, make_mask, tmp_path_factory) -> Path:
    """A mask with flips and a map."""
    backbone = world.backbone()
    mask = make_mask(backbone, 0.99, with_preprocess=True, metadata={"metrics": '{"loss_after":2.5}'})
    path = tmp_path_factory.mktemp("masks") / "mapped.smn"
    write_mask(replace(mask, affine=build_affine(backbone.n_features)), path)
    return path


def test_the_classifier_acts_on_mapped_embeddings_and_the_mask_is_otherwise_as_it_was(world, mapped, tmp_path, smn_run):
    out = tmp_path / "with-head.smn"
    ran = smn_run("probe", "--data", world.data, "--mask", mapped, "--out", out, "--json", *world.flags())
    assert ran.code == 0, ran.err
    before, after = read_mask(mapped), read_mask(out)
    assert (after.packed == before.packed).all()
    assert after.head is not None
    engine, images = Engine(world.backbone(), slots=1), open_split(str(world.data), "train")
    engine.prepare(before)
    found = embed(engine, before.digest, images, 32)
    expected = fit_head(found.z, found.labels, images.classes).head
    np.testing.assert_allclose(after.head.weight, expected.weight, rtol=1e-3, atol=1e-4)
    assert (probabilities(after.head, found.z).argmax(1) == probabilities(expected, found.z).argmax(1)).mean() > 0.99
    metrics, told = json.loads(after.metadata["metrics"]), json.loads(ran.out)
    assert metrics["loss_after"] == 2.5
    assert metrics["probe"]["held_out"] == told["held_out"]
    assert told["digest"] == after.digest
    assert 0.3 < told["held_out"]["accuracy"] <= 1


def test_without_a_mask_the_frozen_backbone_gets_the_classifier(world, tmp_path, smn_run):
    out = tmp_path / "plain.smn"
    ran = smn_run("probe", "--data", world.data, "--out", out, *world.flags())
    assert ran.code == 0, ran.err
    mask = read_mask(out)
    assert (mask.n_off, mask.affine) == (0, None)
    assert mask.head is not None
    assert len(mask.head.classes) == len(open_split(str(world.data), "train").classes)
    assert "held-out images" in ran.err
    assert ran.err.splitlines()[-1] == f"next: smn serve {out}"


def save(folder: Path, n: int, labels: list[str]) -> Path:
    for i in range(n):
        path = folder / labels[i % len(labels)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits()["x_train"][i]).save(path)
    return folder


@pytest.mark.parametrize(
    ("labels", "n", "says"), [([""], 20, "has no labels"), (["a"], 20, "two classes"), (["a", "b"], 8, "4 readable")]
)
def test_labels_that_are_too_few_are_one_line_with_the_fix(labels, n, says, world, tmp_path, smn_run):
    ran = smn_run("probe", "--data", save(tmp_path / "set", n, labels), "--out", tmp_path / "m.smn", *world.flags())
    assert ran.code == 2
    assert says in ran.err.splitlines()[-1]
    assert not (tmp_path / "m.smn").exists()


def test_a_file_that_is_no_mask_is_refused_before_the_work(world, tmp_path, smn_run):
    ran = smn_run("probe", "--data", world.data, "--out", tmp_path / "m.txt", *world.flags())
    assert ran.code == 2
    assert ".smn" in ran.err


def test_classes_whose_names_are_no_text_are_written_so_that_every_verb_reads_them(world, tmp_path, smn_run):
    data, out = save(tmp_path / "set\udcfe", 40, ["a", "b\udcff"]), tmp_path / "m.smn"
    ran = smn_run("probe", "--data", data, "--out", out, *world.flags())
    assert ran.code == 0, ran.err
    written = read_mask(out)
    assert written.head is not None
    assert written.head.classes == ("a", "b\\udcff")
    assert json.loads(written.metadata["metrics"])["probe"]["data"] == "set\\udcfe"
