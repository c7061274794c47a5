"""The file of an image is read as it is, and what cannot be one never stops or fills this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smn_core.errors import ImageTooLarge, InvalidImage
from smn_core.given import each_item
from smn_core.imagefile import MAX_FILE_BYTES, read_image_file
from smn_core.imageset import open_images
from tests.smn_core.test_imageset import write_image


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "a.png").write_bytes(bytes(range(256)) * 5)
    assert read_image_file(tmp_path / "a.png") == bytes(range(256)) * 5


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_an_unreadable_image_at_once(kind, tmp_path):
    place = tmp_path / "x.jpg"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](place)
    with pytest.raises(InvalidImage, match="it is no regular file"):
        read_image_file(place)
    if kind != "folder":
        with pytest.raises(InvalidImage, match=r"x\.jpg: it is no regular file"):
            open_images(tmp_path).image(0)
        with pytest.raises(InvalidImage, match="it is no regular file"):
            next(each_item(place)).read()


def test_an_enormous_file_is_refused_before_it_is_read(tmp_path):
    write_image(tmp_path / "a.jpg")
    os.truncate(tmp_path / "a.jpg", 400 * 2**30)
    with pytest.raises(ImageTooLarge, match=f"at most {MAX_FILE_BYTES:,} are read"):
        open_images(tmp_path).image(0)
