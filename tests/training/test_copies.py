"""Images that are copies of each other count once."""

from __future__ import annotations

import numpy as np
import pytest

from smn_core.errors import InvalidData
from smn_core.imageset import ArraySet
from tests.training.builders import digits
from training.copies import count_distinct
from training.evaluation.command import require_difference


def images(pixels: np.ndarray) -> ArraySet:
    return ArraySet(pixels, [str(i) for i in range(len(pixels))], None, ())


def test_a_verdict_on_copies_of_one_image_is_refused():
    same = images(np.repeat(digits()["x_train"][:1], 64, 0))
    assert count_distinct([same], 30) == (1, 64)
    with pytest.raises(InvalidData, match="all images are alike: a verdict takes 30 different images"):
        require_difference("photos", same, None)


def test_images_that_differ_are_read_until_there_are_enough():
    many = images(digits()["x_train"][:200])
    n_distinct, n_read = count_distinct([many], 30)
    assert n_distinct >= 30
    assert n_read == 64
    require_difference("photos", many, None)
