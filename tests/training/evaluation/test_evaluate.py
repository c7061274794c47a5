"""Evaluation goes through the engine that serves, sees every image, and compares like with like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.images import ImageReader
from smn_core.mask import TaskMask
from tests.training.builders import World, digits
from training.data import open_split
from training.evaluation.evaluate import EvaluationSettings, evaluate
from training.evaluation.probes import accuracy, knn, linear
from training.evaluation.tables import print_results
from training.features import embed, embed_view


@dataclass
class Measured:
    engine: Engine
    mask: TaskMask


@pytest.fixture(scope="module")
def measured(world: World, make_mask: Callable[..., TaskMask]) -> Measured:
    backbone = world.backbone()
    mask = make_mask(backbone, density=0.8)
    engine = Engine(backbone, slots=1)
    engine.prepare(mask)
    return Measured(engine, mask)


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_every_image_is_embedded_once_and_in_order(batch_size, world: World, measured: Measured):
    images = open_split(str(world.data), "train")
    found = embed(measured.engine, measured.mask.digest, images, batch_size)
    assert len(found.z) == len(images.names)
    np.testing.assert_array_equal(found.labels, images.labels)
    reader = ImageReader(measured.engine.backbone.preprocess)
    for index in (0, len(images.names) - 1):
        x = reader.tensor(images.image(index))[None]
        alone = measured.engine.embed(x, [Segment(measured.mask.digest, 0, 1)]).embeddings
        np.testing.assert_allclose(found.z[index], alone[0].numpy(), rtol=1e-3, atol=1e-5)


def test_rows_are_the_protocols_scores_the_frozen_backbone_first(world: World, measured: Measured):
    found = evaluate(
        measured.engine, [("mine", measured.mask)], EvaluationSettings(str(world.data), labels=(2,), seeds=3)
    )
    assert [row["name"] for row in found["rows"]] == ["frozen", "mine"]
    assert (found["train_images"], found["test_images"], found["image_size"], found["knn_k"]) == (320, 160, 32, 20)
    row = found["rows"][1]
    train, test = (
        embed(measured.engine, measured.mask.digest, open_split(str(world.data), s), 32) for s in ("train", "test")
    )
    assert row["knn"] == accuracy(knn(train.z, train.labels, test.z), test.labels)
    assert row["linear"] == accuracy(linear(train.z, train.labels, test.z), test.labels)
    assert row["density"] == measured.mask.density
    few = row["low_shot"]["2"]
    assert len(few["all"]) == 3
    assert few["mean"] == pytest.approx(np.mean(few["all"]))
    assert few["deviation"] == pytest.approx(np.std(few["all"], ddof=1))


def test_a_mask_with_a_map_is_scored_on_mapped_embeddings(world: World, make_mask):
    """Probes see what the server gives out; the frozen row stays what it was."""
    backbone = world.backbone()
    mapped = make_mask(backbone, density=0.8, with_affine="float32")
    engine = Engine(backbone, slots=1)
    plan = EvaluationSettings(str(world.data), probes=("knn",), views=False)
    rows = evaluate(engine, [("mapped", mapped)], plan)["rows"]
    bare = replace(mapped, affine=None, digest="sha256:bare")
    engine.prepare(bare)
    train, test = (embed(engine, bare.digest, open_split(str(world.data), s), 32) for s in ("train", "test"))
    expected = knn(mapped.affine.apply(train.z), train.labels, mapped.affine.apply(test.z))
    assert rows[1]["knn"] == accuracy(expected, test.labels)
    assert rows[1]["knn"] != accuracy(knn(train.z, train.labels, test.z), test.labels)
    assert rows[0]["knn"] == evaluate(engine, [], plan)["rows"][0]["knn"]


def test_low_shot_draws_are_the_same_for_every_mask(world: World, measured: Measured):
    settings = EvaluationSettings(str(world.data), probes=("linear",), labels=(3,), seeds=2)
    found = evaluate(measured.engine, [("a", measured.mask), ("b", measured.mask)], settings)
    assert found["rows"][1]["low_shot"] == found["rows"][2]["low_shot"]


def test_folds_score_every_training_image_once_by_images_of_other_folds(world: World, measured: Measured):
    found = evaluate(measured.engine, [("mine", measured.mask)], EvaluationSettings(str(world.data), folds=4))
    assert (found["folds"], found["test_images"]) == (4, 0)
    train = embed(measured.engine, measured.mask.digest, open_split(str(world.data), "train"), 32)
    right = 0
    for rest, fold in StratifiedKFold(4, shuffle=True, random_state=0).split(train.z, train.labels):
        right += (knn(train.z[rest], train.labels[rest], train.z[fold]) == train.labels[fold]).sum()
    assert found["rows"][1]["knn"] == right / len(train.z)
    assert 0 < found["rows"][1]["linear"] <= 1


def test_folds_open_no_test_split(measured: Measured, tmp_path):
    rows = digits()
    np.savez(tmp_path / "train.npz", x_train=rows["x_train"], y_train=rows["y_train"])
    found = evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "train.npz"), probes=("knn",), folds=2))
    assert 0 < found["rows"][0]["knn"] <= 1


def test_the_frozen_backbone_keeps_all_of_its_own_neighbours(world: World, measured: Measured):
    found = evaluate(measured.engine, [("mine", measured.mask)], EvaluationSettings(str(world.data), probes=()))
    frozen, mine = (row["signs"] for row in found["rows"])
    assert frozen["neighbours_kept"] == 1.0
    assert 0 < mine["neighbours_kept"] < 1
    assert mine["effective_rank"] > 1
    assert "knn" not in found["rows"][0]


def test_without_views_everything_else_is_as_with_them(world: World, measured: Measured, monkeypatch):
    settings = EvaluationSettings(str(world.data), probes=("knn",))
    whole = evaluate(measured.engine, [("mine", measured.mask)], settings)["rows"]
    monkeypatch.setattr("training.evaluation.evaluate.embed_view", None)
    quick = evaluate(measured.engine, [("mine", measured.mask)], replace(settings, views=False))["rows"]
    for row in whole:
        assert row["signs"].pop("view_agreement") > 0
    assert quick == whole


def test_views_are_the_same_for_every_mask_and_differ_by_seed(world: World, measured: Measured):
    images = open_split(str(world.data), "test")
    one, two, other = (embed_view(measured.engine, None, images, seed, 64) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def write(folder, pixels) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03}.png")


def test_images_without_labels_have_signs_alone(world: World, measured: Measured, tmp_path):
    write(tmp_path / "photos", digits()["x_train"][:30])
    found = evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "photos")))
    assert set(found["rows"][0]) == {"name", "digest", "signs", "skipped"}
    assert found["test_images"] == 0


def test_a_folder_without_a_test_split_is_not_scored_on_its_own_training_images(measured: Measured, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "photos" / name, digits()["x_train"][:15])
    found = evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "photos")))
    assert "knn" not in found["rows"][0]
    assert found["test_images"] == 0
    assert "no test split" in found["remarks"][0]


def test_a_test_split_that_lacks_a_class_is_scored_as_if_it_did_not(measured: Measured, tmp_path):
    """Its classes were once counted anew, so that every score was of other classes."""
    shades = {"a": 0, "b": 100, "c": 200}
    for name, shade in shades.items():
        for split in ("train", "test") if name != "a" else ("train",):
            write(tmp_path / "set" / split / name, np.full((12, 32, 32, 3), shade, np.uint8))
    found = evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "set")))
    assert found["rows"][0]["knn"] == 1.0


def test_a_split_that_was_asked_for_is_not_passed_over(measured: Measured, world: World, tmp_path):
    with pytest.raises(InvalidData, match="tset"):
        evaluate(measured.engine, [], EvaluationSettings(str(world.data), test_split="tset"))
    broken = {**digits(), "y_test": digits()["y_test"][:-3]}
    np.savez(tmp_path / "broken.npz", **broken)
    with pytest.raises(InvalidData, match="y_test"):
        evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "broken.npz")))
    del broken["y_test"]
    np.savez(tmp_path / "unlabelled.npz", **broken)
    assert (
        "no labels" in evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "unlabelled.npz")))["remarks"][0]
    )


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 1000, 2000)])
def test_folds_take_class_numbers_with_gaps(numbers, measured: Measured, tmp_path):
    y = np.repeat(numbers, 10)
    np.savez(tmp_path / "gaps.npz", x_train=digits()["x_train"][:30], y_train=y)
    found = evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "gaps.npz"), folds=3))
    assert 0 <= found["rows"][0]["knn"] <= 1


def test_one_class_is_scored_without_a_fuss(measured: Measured, tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "set" / split / "only", digits()["x_train"][:15])
    found = evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "set")))
    assert found["rows"][0]["knn"] == found["rows"][0]["linear"] == 1.0


@pytest.mark.parametrize("metrics", ["", "fast", "[]", '{"loss_after": "low"}', '{"loss_after": 2.5}'])
def test_a_masks_losses_are_shown_where_its_file_tells_them(metrics, world: World, measured: Measured):
    mask = replace(measured.mask, metadata={"metrics": metrics} if metrics else {})
    found = evaluate(measured.engine, [("mine", mask)], EvaluationSettings(str(world.data), probes=()))
    told = {"loss_after": 2.5} if "2.5" in metrics else {}
    assert {k: v for k, v in found["rows"][1]["signs"].items() if k.startswith("loss")} == told
    print_results(found)


def test_images_that_cannot_be_read_are_left_out_and_counted(measured: Measured, tmp_path):
    write(tmp_path / "set", digits()["x_train"][:20])
    (tmp_path / "set/003.png").write_bytes(b"no image")
    found = evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "set"), batch_size=4))
    assert found["rows"][0]["skipped"] == 1
    (reason,) = found["unreadable"]["train"]
    assert "003.png" in reason
    for path in (tmp_path / "set").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InvalidData, match="none of the 20 images can be read"):
        evaluate(measured.engine, [], EvaluationSettings(str(tmp_path / "set")))


@pytest.mark.parametrize(
    "change",
    [
        {"probes": ("svm",)},
        {"seeds": 0},
        {"labels": (500,)},
        {"folds": 1},
        {"folds": 200},
        {"folds": 2, "labels": (2,)},
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(change, world: World, measured: Measured):
    with pytest.raises(InvalidArgument):
        evaluate(measured.engine, [], EvaluationSettings(str(world.data), **change))


def test_the_table_shows_scores_and_signs(world: World, measured: Measured, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    found = evaluate(
        measured.engine, [("mine", measured.mask)], EvaluationSettings(str(world.data), labels=(2,), seeds=2)
    )
    print_results(found)
    out = capsys.readouterr().out
    for text in (
        "digits.npz: 320 train, 160 test, 32 px",
        "kNN (20)",
        "2 labels",
        "rank",
        f"{measured.mask.density:.6f}",
    ):
        assert text in out
