"""What `smn adapt` finds in a folder, and what it says where nothing can be learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smn_core.errors import InvalidData
from tests.training.adapt.photos import Ticking, save_photos, save_plain
from training.adapt.look import FEWEST_IMAGES, Found, cut, look


def seen(folder: Path, bound_s: float = 60.0, tick_s: float = 0.0) -> tuple[Found, list[str]]:
    told: list[str] = []
    return look(str(folder), bound_s, told.append, Ticking(tick_s)), told


def test_it_counts_what_is_there_and_names_what_cannot_be_read(tmp_path):
    save_photos(tmp_path / "a" / "deep", 40)
    save_photos(tmp_path / "b", 2, lambda image: image.resize((300, 200)).convert("L").rotate(90))
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "a" / "x.dng").write_bytes(b"dng")
    (tmp_path / "b" / "broken.jpg").write_bytes(b"no image")
    found, told = seen(tmp_path)
    assert found.n_all == 43
    assert len(found.images.names) == 42
    assert found.sides_px == (32, 300)
    assert found.not_read == {".txt": 1, ".dng": 1}
    assert len(found.unreadable) == 1
    assert "broken.jpg" in found.unreadable[0]
    assert told[0].startswith(f"{tmp_path}: 43 images; looking at them")
    assert any("1 .txt" in line and "1 .dng" in line and "JPEG" in line for line in told)
    assert any(line.startswith("1 cannot be read") and "broken.jpg" in line for line in told)
    assert told[-1].startswith("42 images to learn from, sides 32 to 300 px")


def test_near_copies_are_found_and_lie_on_one_side_of_the_cut(tmp_path):
    save_photos(tmp_path / "first", 60)
    save_photos(tmp_path / "smaller", 60, lambda image: image.resize((96, 96)).point(lambda v: v * 0.8 + 20))
    found, told = seen(tmp_path)
    first = {name.split("/")[1]: i for i, name in enumerate(found.images.names) if name.startswith("first")}
    second = {name.split("/")[1]: i for i, name in enumerate(found.images.names) if name.startswith("smaller")}
    assert all(found.groups[first[name]] == found.groups[second[name]] for name in first)
    assert found.n_distinct >= 55
    learned, unseen = cut(found, seed=0)
    assert sorted([*learned, *unseen]) == list(range(120))
    assert not set(found.groups[learned]) & set(found.groups[unseen])
    assert 20 <= len(unseen) <= 24
    assert f"{120 - found.n_distinct} near-copies" in told[-1]


def test_another_seed_cuts_otherwise_and_the_same_seed_alike(tmp_path):
    found, _ = seen(save_photos(tmp_path, 60))
    assert cut(found, 0)[1].tolist() == cut(found, 0)[1].tolist()
    assert cut(found, 0)[1].tolist() != cut(found, 1)[1].tolist()


def test_images_that_are_not_reached_in_time_are_left_out(tmp_path):
    found, told = seen(save_photos(tmp_path, 100), bound_s=3.0, tick_s=1.0)
    assert FEWEST_IMAGES <= len(found.images.names) < 100
    assert f"{100 - len(found.images.names)} not reached in this time" in told[-1]


def test_a_slow_disk_still_gives_the_fewest_images(tmp_path):
    found, _ = seen(save_photos(tmp_path, 100), bound_s=0.0, tick_s=100.0)
    assert len(found.images.names) >= FEWEST_IMAGES


def test_panoramas_of_10000_px_are_looked_at(tmp_path):
    save_photos(tmp_path, 35)
    Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (1, 10_000, 3))).save(tmp_path / "wide.png")
    found, _ = seen(tmp_path)
    assert found.sides_px == (32, 10_000)
    assert "wide.png" in found.images.names


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: save_photos(folder, 1), "1 readable image of 1: a mask needs 30 at least"),
        (lambda folder: save_photos(folder, 29), "29 readable images of 29: a mask needs 30 at least"),
        (lambda folder: save_plain(folder, 40, 0), "every image is of one colour, black or another"),
        (lambda folder: save_plain(folder, 40, 10, 200), "every image is of one colour, black or another"),
        (lambda folder: save_photos(folder, 1) and copies(folder, 40), "all images are alike"),
        (lambda folder: save_photos(folder, 3) and copies(folder, 40), "only 3 images differ"),
    ],
)
def test_where_nothing_can_be_learned_one_sentence_names_the_fix(make, says, tmp_path):
    make(tmp_path)
    with pytest.raises(InvalidData, match=says) as error:
        seen(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_of_other_files_says_what_they_are(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.DNG").write_bytes(b"dng")
    with pytest.raises(InvalidData, match=r"has no image .*3 \.dng; convert them to JPEG"):
        seen(tmp_path)


def test_unreadable_images_do_not_count(tmp_path):
    save_photos(tmp_path, 20)
    for i in range(20):
        (tmp_path / f"broken{i}.jpg").write_bytes(b"no image")
    with pytest.raises(InvalidData, match=r"20 readable images of 40, 20 more cannot be read \(.*broken"):
        seen(tmp_path)


def copies(folder: Path, n: int) -> None:
    for i in range(n):
        (folder / f"copy{i}.png").write_bytes((folder / "000.png").read_bytes())
