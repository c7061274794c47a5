"""What a caller gives as images becomes files or model inputs, one by one, with names."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from smn_core.errors import InvalidArgument, InvalidImage
from smn_core.given import count_of, each_item
from smn_core.images import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def png(pixels=PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/1.png", "a.png"):
        (tmp_path / name).write_bytes(png())
    return tmp_path


def test_every_kind_of_image_is_its_pixels(folder):
    given = [str(folder / "a.png"), folder / "a.png", png(), bytearray(png()), Image.fromarray(PIXELS), PIXELS, folder]
    items = list(each_item(given))
    assert [item.number for item in items] == list(range(8))
    assert [item.name for item in items[2:5]] == ["image 2", "image 3", "image 4"]
    assert items[0].name == str(folder / "a.png") and items[7].name == str(folder / "b" / "1.png")
    assert all(np.array_equal(np.asarray(decode(item.read())), PIXELS) for item in items)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "YCbCr", "HSV"])
def test_a_pil_image_of_any_mode_becomes_a_file(mode):
    image = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode)
    image = image.convert("I;16") if mode == "I;16" else image
    (item,) = each_item(image)
    assert decode(item.read()).size == (5, 6)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_pil_image_without_a_stated_range_is_refused(mode):
    (item,) = each_item(Image.fromarray(PIXELS).convert(mode))
    with pytest.raises(InvalidImage, match="no stated range"):
        item.read()


def test_floats_are_model_inputs_and_a_tensor_is_its_array():
    x = np.random.default_rng(1).standard_normal((4, 3, 7, 7))
    for given in (x, torch.from_numpy(x), list(x)):
        found = [item.read() for item in each_item(given)]
        assert len(found) == 4 and all(one.dtype == np.float32 for one in found)
        np.testing.assert_array_equal(np.stack(found), x.astype(np.float32))


def test_an_endless_iterable_is_asked_for_what_is_wanted():
    items = each_item(png() for _ in itertools.count())
    assert [next(items).number for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "given", [3, None, {"a": 1}, [[b"x"]], np.zeros((4, 5), np.float32), np.zeros((2, 2, 2), np.uint8)]
)
def test_what_is_no_image_is_refused(given):
    with pytest.raises(InvalidArgument, match="is no image"):
        list(each_item(given))


def test_a_file_that_is_not_there_is_an_image_that_cannot_be_read(tmp_path):
    (item,) = each_item(tmp_path / "nowhere.png")
    with pytest.raises(InvalidImage, match="No such file"):
        item.read()


def test_how_many_they_are_is_known_or_not(folder):
    known = [b"x", folder / "a.png", PIXELS, np.zeros((4, 3, 2, 2), np.float32), [b"x", b"y"]]
    assert [count_of(given) for given in known] == [1, 1, 1, 4, 2]
    assert [count_of(given) for given in (folder, [folder], iter([b"x"]))] == [None, None, None]
