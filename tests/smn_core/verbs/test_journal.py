"""What a stopped run has written down is whole, and only that."""

import numpy as np
import pytest

from smn_core.errors import InvalidData, OtherSpace
from smn_core.verbs.journal import IMAGES, ROWS, Journal


def vectors(*firsts):
    return [np.array([first, 0.5], np.float32) for first in firsts]


@pytest.fixture
def folder(tmp_path):
    with Journal(tmp_path / "part") as journal:
        journal.admit("smn1:a", 2, {"model": "m"})
        journal.add(["a", "b"], [(1, 1), (2, 2)], vectors(1, 2))
        journal.skip("bad\udcff", (3, 3), "no image")
    return tmp_path / "part"


def test_a_journal_is_read_as_it_was_written(folder):
    with Journal(folder) as journal:
        assert journal.collection.space == "smn1:a" and journal.facts == {"model": "m"} and journal.width == 2
        assert (
            journal.is_done("a", (1, 1)) and journal.is_done("bad\udcff", (3, 3)) and not journal.is_done("a", (1, 9))
        )
        journal.add(["c"], [(4, 4)], vectors(3))
        assert journal.entries["c"].row == 2
    assert np.fromfile(folder / ROWS, np.float32).reshape(-1, 2)[:, 0].tolist() == [1, 2, 3]


def test_a_torn_line_and_its_vector_are_dropped(folder):
    with (folder / ROWS).open("ab") as file:
        file.write(b"\0" * 11)
    with (folder / IMAGES).open("ab") as file:
        file.write(b'["c", 4')
    with Journal(folder) as journal:
        assert set(journal.entries) == {"a", "b", "bad\udcff"}
        journal.add(["c"], [(4, 4)], vectors(3))
    assert np.fromfile(folder / ROWS, np.float32).reshape(-1, 2)[:, 0].tolist() == [1, 2, 3]


def test_another_space_is_refused(folder):
    with Journal(folder) as journal, pytest.raises(OtherSpace, match="2 vectors of the space smn1:a"):
        journal.admit("smn1:b", 2, {})


@pytest.mark.parametrize("damage", ["rows", "line", "stranger"])
def test_a_damaged_journal_is_refused(folder, damage):
    if damage == "rows":
        (folder / ROWS).write_bytes(b"")
    elif damage == "line":
        (folder / IMAGES).write_bytes(b"{}\n")
    else:
        (folder / IMAGES).unlink()
    with pytest.raises(InvalidData, match=r"delete it|move it away"), Journal(folder):
        raise AssertionError("it opened")


def test_a_finished_journal_is_gone(folder):
    with Journal(folder) as journal:
        journal.remove()
    assert not folder.exists()
