"""The note of what a run kept back: found beside a mask and around it, and believed of its own images alone."""

from __future__ import annotations

import numpy as np
import pytest

from smn_core.imageset import ArraySet
from training.unseen import FILE_NAME, find_unseen, write_unseen

IMAGES = ArraySet(np.zeros((5, 2, 2, 3), np.uint8), ["a", "b", "c", "d", "e"], None, ())


def test_the_note_is_found_beside_the_file_and_around_it(tmp_path):
    folder = tmp_path / "photos.run"
    folder.mkdir()
    write_unseen(folder, ["d", "b"])
    for file in (tmp_path / "photos.smn", folder / "mask.smn"):
        found = find_unseen(file, IMAGES)
        assert found is not None
        assert found.tolist() == [1, 3]
    assert find_unseen(tmp_path / "other.smn", IMAGES) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"unseen": []}', '{"unseen": ["a", "of another set"]}', "\0"])
def test_a_note_that_is_damaged_or_of_another_set_says_nothing(text, tmp_path):
    (tmp_path / "photos.run").mkdir()
    (tmp_path / "photos.run" / FILE_NAME).write_text(text)
    assert find_unseen(tmp_path / "photos.smn", IMAGES) is None
