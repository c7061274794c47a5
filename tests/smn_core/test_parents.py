"""A parent is found by its digest, wherever it lies among others."""

import os

import pytest

from smn_core.parents import beside, parent_of, parent_path
from smn_core.tensorfile import digest_of, serialise_tensors


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "child"):
        (tmp_path / f"{name}.smn").write_bytes(name.encode())
    (tmp_path / "folder.smn").mkdir()
    return tmp_path


def test_it_is_found_beside_the_file_and_nothing_else_is(folder):
    find = beside(folder / "child.smn")
    assert find(digest_of(b"b")) == b"b"
    assert find(digest_of(b"c")) is None


def test_a_pipe_beside_the_file_is_not_waited_for(folder):
    os.mkfifo(folder / "0.smn")
    test_it_is_found_beside_the_file_and_nothing_else_is(folder)


def test_one_that_is_named_is_taken_and_the_folder_is_looked_through_too(folder, tmp_path_factory):
    named = tmp_path_factory.mktemp("elsewhere") / "parent"
    named.write_bytes(b"named")
    find = beside(folder / "child.smn", named)
    assert find(digest_of(b"named")) == b"named" and find(digest_of(b"a")) == b"a"
    with pytest.raises(FileNotFoundError):
        beside(folder / "child.smn", folder / "nothing")(digest_of(b"a"))


def test_only_a_mask_has_a_parent():
    parent = f"sha256:{'0' * 64}"
    assert parent_of(serialise_tensors({}, {"format": "smn-mask/1", "parent": parent})) == parent
    assert parent_of(serialise_tensors({}, {"format": "smn-mask/1"})) is None
    assert parent_of(serialise_tensors({}, {"format": "smn-cascade/1", "parent": parent})) is None
    assert parent_of(b"no file") is None


def test_a_parent_that_comes_along_lies_beside_its_child(tmp_path):
    assert parent_path(tmp_path / "m.smn") == tmp_path / "m.parent.smn"
