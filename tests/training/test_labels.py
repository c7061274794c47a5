"""Labels mean the same in every split, and a few of them are drawn alike for whoever asks."""

from __future__ import annotations

import numpy as np
import pytest

from smn_core.errors import InvalidArgument, InvalidData
from smn_core.imageset import open_images
from tests.training.builders import class_folders
from training.data import open_split
from training.labels import parse_amount, pick_labels, renumber_classes, say_why_unlabelled

LABELS = np.repeat(np.arange(4), [10, 20, 30, 5])


def test_the_same_labels_are_picked_for_whoever_asks():
    np.testing.assert_array_equal(pick_labels(LABELS, 0.2, 3), pick_labels(LABELS, 0.2, 3))
    assert not np.array_equal(pick_labels(LABELS, 0.2, 3), pick_labels(LABELS, 0.2, 4))


@pytest.mark.parametrize("amount", [1, 5])
def test_a_whole_number_is_so_many_of_every_class(amount):
    picked = pick_labels(LABELS, amount, 0)
    assert np.bincount(LABELS[picked]).tolist() == [amount] * 4
    assert len(np.unique(picked)) == 4 * amount


def test_a_number_with_a_point_is_a_fraction_and_1_0_is_everything():
    assert len(pick_labels(LABELS, 0.2, 0)) == 13
    assert len(pick_labels(LABELS, 1e-9, 0)) == 1
    np.testing.assert_array_equal(pick_labels(LABELS, 1.0, 0), np.arange(65))


@pytest.mark.parametrize(
    ("text", "amount"), [("1", 1), ("20", 20), ("20.0", 20), ("0.1", 0.1), ("1.0", 1.0), ("1e-2", 0.01)]
)
def test_what_labels_means_on_the_command_line(text, amount):
    found = parse_amount(text)
    assert found == amount and type(found) is type(amount)


@pytest.mark.parametrize("text", ["", "few", "nan", "inf", "-1", "0", "0.0", "2.5", "-0.5"])
def test_labels_that_are_no_amount_are_refused(text):
    with pytest.raises(InvalidArgument, match="--labels"):
        parse_amount(text)


@pytest.mark.parametrize("amount", [0, -1, 2.5, 6, 1000, float("nan"), float("inf")])
def test_more_labels_than_a_class_has_are_refused(amount):
    with pytest.raises(InvalidArgument, match="--labels"):
        pick_labels(LABELS, amount, 0)


def test_a_class_with_too_few_images_is_told_by_its_name():
    with pytest.raises(InvalidArgument, match="class moss has 5 images"):
        pick_labels(np.zeros(5, np.int64), 6, 0, ["moss"])


def test_classes_are_matched_by_name_not_by_their_place_in_the_list(tmp_path):
    class_folders(tmp_path, "train/a", "train/b", "train/c", "test/b", "test/c")
    train, test = (open_split(str(tmp_path), split) for split in ("train", "test"))
    assert test.labels.tolist() == [0, 1]
    matched = renumber_classes(train, test)
    assert matched.labels.tolist() == [1, 2]
    assert list(matched.names) == list(test.names) and matched.image(0).size == (8, 8)


def test_a_class_that_the_train_split_has_not_is_named(tmp_path):
    class_folders(tmp_path, "train/a", "train/b", "test/a", "test/bb")
    train, test = (open_split(str(tmp_path), split) for split in ("train", "test"))
    with pytest.raises(InvalidData, match="no class bb: it has a, b"):
        renumber_classes(train, test)


def test_an_image_beside_the_class_folders_is_named_with_the_mend(tmp_path):
    class_folders(tmp_path, "cat", "dog")
    (tmp_path / "cat/x.png").rename(tmp_path / "thumb.png")
    class_folders(tmp_path, "bird")
    assert say_why_unlabelled(open_images(tmp_path)) == ": thumb.png lies beside the class folders: move it away"
    assert say_why_unlabelled(open_images(tmp_path / "dog")) == ""
