"""A few labels: every image is scored by others, and labels that are too few are one clear error."""

from __future__ import annotations

import numpy as np
import pytest

from smn_core.errors import InvalidData
from tests.training.adapt.photos import save_photos
from training.evaluation.labelled import BOTH, KNN, PROBE, leave_one_out, open_few, require_labels, score

LABELS = np.repeat(np.arange(3), 10)


def clusters(rng: np.random.Generator, noise: float) -> np.ndarray:
    return (np.eye(3, 8)[LABELS] + noise * rng.standard_normal((30, 8))).astype(np.float32)


def test_clear_classes_are_found_and_noise_is_not(rng):
    clear, noise = score(clusters(rng, 0.05), LABELS), score(clusters(rng, 5.0), LABELS)
    for name in (KNN, PROBE, BOTH):
        assert clear[name].shape == (30,)
        assert clear[name].mean() == 1.0
        assert noise[name].mean() < 0.7
    np.testing.assert_allclose(noise[BOTH], (noise[KNN] + noise[PROBE]) / 2)


def test_no_image_votes_for_itself():
    z = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]] + np.float32(0.1)
    assert (leave_one_out(z, np.array([0, 1, 0, 1])) != [0, 1, 0, 1]).all()


def test_class_numbers_may_have_gaps(rng):
    z = clusters(rng, 0.05)
    np.testing.assert_array_equal(leave_one_out(z, LABELS * 100 + 7), LABELS * 100 + 7)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "no labels"),
        ([0, 0, 0, 0], "one class"),
        ([0, 0, 0, 1, 1], "class dog has 2 readable images: add some"),
    ],
)
def test_labels_that_are_too_few_are_refused(labels, says):
    with pytest.raises(InvalidData, match=says):
        require_labels(np.array(labels) if labels is not None else None, ["cat", "dog"])


def test_folders_of_splits_are_never_taken_for_classes(tmp_path):
    for split, classes in (("train", ("cat", "dog")), ("test", ("cat",))):
        for name in classes:
            save_photos(tmp_path / split / name, 4)
    few = open_few(tmp_path)
    assert list(few.classes) == ["cat", "dog"]
    assert few.labels.tolist() == [0] * 4 + [1] * 4
    (tmp_path / "train").rename(tmp_path / "val")
    with pytest.raises(InvalidData, match="has the splits test, val, not 'train'"):
        open_few(tmp_path)
