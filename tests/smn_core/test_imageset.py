"""A folder or an `.npz` is a set of images in one order, with labels where it has them."""

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smn_core.errors import ImageTooLarge, InvalidData, InvalidImage
from smn_core.imageset import ImageSet, open_images


def write_image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (shade, shade, shade)).save(path, "PNG")


def folder(root: Path, *names: str) -> Path:
    """A folder of images, the i-th name with shade i."""
    for shade, name in enumerate(names):
        write_image(root / name, shade)
    return root


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def shades(images: ImageSet) -> list[int]:
    return [images.image(i).getpixel((0, 0))[0] for i in range(len(images.names))]


X = np.arange(3, dtype=np.uint8).repeat(5 * 4 * 3).reshape(3, 5, 4, 3)  # the i-th image has shade i
Y = np.array([1, 0, 1])


# -- folders -----------------------------------------------------------------------------------------------------------


def test_images_come_in_sorted_order_of_their_relative_posix_paths(tmp_path):
    root = folder(tmp_path, "b/2.png", "b/10.png", "a/z/1.png", "a-b/1.png", "B/1.png", "a/1.png")
    images = open_images(root)
    assert images.names == ["B/1.png", "a-b/1.png", "a/1.png", "a/z/1.png", "b/10.png", "b/2.png"]
    assert shades(images) == [4, 3, 5, 2, 1, 0]


def test_suffixes_of_any_case_are_taken(tmp_path):
    root = folder(tmp_path, "a.PNG", "b.JpG", "c.jpeg", "d.WebP", "e.TIFF", "f.tif", "g.bmp", "h.gif", "i.AVIF")
    assert len(open_images(root).names) == 9


def test_unicode_names_are_taken(tmp_path):
    names = ["dög/ü.png", "cat 1/ñ ñ.png", "猫/一.png", "😀/1.png"]
    images = open_images(folder(tmp_path, *names))
    assert images.names == sorted(names)
    assert images.classes == ["cat 1", "dög", "猫", "😀"]
    assert sorted(shades(images)) == [0, 1, 2, 3]


def test_hidden_files_and_other_files_are_skipped(tmp_path):
    root = folder(tmp_path, "a.png", ".b.png", "._a.png")
    for name in ("notes.txt", "labels.csv", "a.png.bak", "png", "model.pt"):
        (root / name).write_text("not an image")
    assert open_images(root).names == ["a.png"]


def test_hidden_folders_are_skipped(tmp_path):
    root = folder(tmp_path, "a/1.png", ".thumbnails/1.png", "a/.cache/2.png")
    assert open_images(root).names == ["a/1.png"]
    assert open_images(root).classes == ["a"]


def test_a_folder_with_an_images_suffix_is_no_image(tmp_path):
    root = folder(tmp_path, "a.png/1.png")
    assert open_images(root).names == ["a.png/1.png"]


def test_class_folders_give_labels_in_sorted_order_of_class_names(tmp_path):
    images = open_images(folder(tmp_path, "dog/1.png", "cat/1.png", "dog/deep/2.png"))
    assert images.classes == ["cat", "dog"]
    assert images.labels.tolist() == [0, 1, 1]
    assert images.labels.dtype == np.int64


def test_a_flat_folder_has_no_labels(tmp_path):
    images = open_images(folder(tmp_path, "1.png", "2.png"))
    assert images.labels is None
    assert len(images.classes) == 0


def test_one_loose_image_beside_class_folders_means_no_labels(tmp_path):
    assert open_images(folder(tmp_path, "cat/1.png", "2.png")).labels is None


def test_a_split_is_the_subfolder_of_its_name(tmp_path):
    root = folder(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/dog/2.png")
    images = open_images(root, "train")
    assert images.names == ["cat/1.png", "dog/1.png"]
    assert images.classes == ["cat", "dog"]
    assert open_images(root, "test").names == ["dog/2.png"]


def test_a_split_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidData, match="'val'"):
        open_images(folder(tmp_path, "train/1.png"), "val")


def test_a_path_may_be_text(tmp_path):
    assert open_images(str(folder(tmp_path, "1.png"))).names == ["1.png"]


@pytest.mark.timeout(20)
def test_a_link_back_up_the_tree_ends(tmp_path):
    root = folder(tmp_path / "set", "a/1.png", "b/2.png")
    (root / "a/up").symlink_to(root, target_is_directory=True)
    (root / "b/self").symlink_to(".", target_is_directory=True)
    assert open_images(root).names == ["a/1.png", "b/2.png"]


def test_linked_folders_and_files_are_followed(tmp_path):
    store = folder(tmp_path / "store", "1.png", "2.png")
    root = folder(tmp_path / "set", "cat/0.png")
    (root / "dog").symlink_to(store, target_is_directory=True)
    (root / "cat/link.png").symlink_to(store / "1.png")
    images = open_images(root)
    assert images.names == ["cat/0.png", "cat/link.png", "dog/1.png", "dog/2.png"]
    assert images.labels.tolist() == [0, 0, 1, 1]


def test_two_links_to_one_folder_are_both_followed_whatever_the_disk_lists_first(tmp_path):
    store = folder(tmp_path / "store", "1.png")
    root = tmp_path / "set"
    root.mkdir()
    for name in ("cat", "dog"):
        (root / name).symlink_to(store, target_is_directory=True)
    assert open_images(root).names == ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o444])
def test_a_folder_that_cannot_be_looked_into_is_refused_by_name(mode, tmp_path, monkeypatch):
    """Its images are not passed over in silence: an index would lose them."""
    closed = folder(tmp_path, "open/1.png", "closed/2.png") / "closed"
    if os.getuid() == 0:  # who may do everything: the kernel's answers to others are put in

        def deny(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(closed))

        scan, look = os.scandir, os.stat
        if not mode & 0o444:
            monkeypatch.setattr(os, "scandir", lambda path: deny() if Path(path) == closed else scan(path))
        if not mode & 0o111:
            below = lambda path: isinstance(path, (str, os.PathLike)) and Path(path).parent == closed  # noqa: E731
            monkeypatch.setattr(os, "stat", lambda p, **more: deny() if below(p) else look(p, **more))
    closed.chmod(mode)
    try:
        with pytest.raises(InvalidData, match=f"folder {closed}: Permission denied: make it readable"):
            open_images(tmp_path)
    finally:
        closed.chmod(0o755)


def test_an_empty_folder_is_refused_with_the_suffixes_it_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(InvalidData, match=r"has no image .*\.jpg"):
        open_images(tmp_path)


def test_a_missing_path_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidData, match=r"nowhere does not exist: give an image folder or an \.npz"):
        open_images(tmp_path / "nowhere")


def test_a_corrupt_image_is_refused_by_its_path(tmp_path):
    root = folder(tmp_path, "a/1.png")
    (root / "a/2.png").write_bytes(b"not a png")
    images = open_images(root)
    with pytest.raises(InvalidImage, match=r"a/2\.png: the 9 bytes are not an image"):
        images.image(1)
    assert images.image(0).size == (4, 3)


def test_an_image_too_large_is_refused_by_its_path(tmp_path):
    path = tmp_path / "big.ppm"
    path.write_bytes(b"P6 8000 8000 255\n")
    with pytest.raises(ImageTooLarge, match=r"big\.ppm: the image is 8000 x 8000 px"):
        open_images(tmp_path).image(0)


def test_an_image_that_went_away_is_refused_by_its_path(tmp_path):
    images = open_images(folder(tmp_path, "a.png"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(InvalidImage, match=r"cannot read .*a\.png: No such file"):
        images.image(0)


def test_a_jpeg_of_a_folder_may_be_decoded_at_a_reduced_scale(tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg")
    images = open_images(tmp_path)
    assert images.image(0).size == (400, 300)
    assert images.image(0, draft_px=70).size == (100, 75)


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_a_split_of_arrays_is_read_with_its_labels(tmp_path):
    path = npz(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:1], y_test=Y[:1])
    train, test = open_images(path, "train"), open_images(path, "test")
    assert shades(train) == [0, 1, 2]
    assert train.image(0).size == (4, 5)
    assert train.labels.tolist() == [1, 0, 1]
    assert train.labels.dtype == np.int64
    assert train.names == ["0", "1", "2"]
    assert len(test.names) == 1


def test_the_only_split_needs_no_name(tmp_path):
    assert shades(open_images(npz(tmp_path / "a.npz", x_pool=X))) == [0, 1, 2]


def test_several_splits_must_be_chosen_from(tmp_path):
    path = npz(tmp_path / "a.npz", x_train=X, x_test=X)
    with pytest.raises(InvalidData, match=r"\['test', 'train'\]"):
        open_images(path)
    with pytest.raises(InvalidData, match=r"\['test', 'train'\]"):
        open_images(path, "val")


def test_arrays_of_other_names_are_refused(tmp_path):
    with pytest.raises(InvalidData):
        open_images(npz(tmp_path / "a.npz", images=X))


def test_arrays_without_labels_have_none(tmp_path):
    images = open_images(npz(tmp_path / "a.npz", x_train=X))
    assert images.labels is None
    assert len(images.classes) == 0


def test_labels_without_class_names_are_named_by_number(tmp_path):
    assert open_images(npz(tmp_path / "a.npz", x_train=X, y_train=Y)).classes == ["0", "1"]


def test_class_numbers_that_lie_far_apart_are_as_many_classes_as_occur(tmp_path):
    images = open_images(npz(tmp_path / "a.npz", x_train=X, y_train=np.array([900_000, 7, 900_000])))
    assert images.classes == ["7", "900000"]
    assert images.labels.tolist() == [1, 0, 1]
    assert images.labels.dtype == np.int64


@pytest.mark.parametrize(("names", "says"), [(["a"], "has 1 names"), (["a", "b", "a"], "'a' more than once")])
def test_class_names_that_are_too_few_or_not_distinct_are_refused(names, says, tmp_path):
    with pytest.raises(InvalidData, match=says):
        open_images(npz(tmp_path / "a.npz", x_train=X, y_train=Y, class_names=np.array(names)))


def test_class_names_of_classes_that_a_split_lacks_keep_the_numbers(tmp_path):
    path = npz(tmp_path / "a.npz", x_train=X, y_train=2 * Y, class_names=np.array(["a", "b", "c", "d"]))
    assert open_images(path).labels.tolist() == [2, 0, 2]
    assert open_images(path).classes == ["a", "b", "c", "d"]


def test_class_names_are_read(tmp_path):
    path = npz(tmp_path / "a.npz", x_train=X, y_train=Y, class_names=np.array(["cät", "dog"]))
    assert list(open_images(path).classes) == ["cät", "dog"]


def test_class_names_of_bytes_are_text(tmp_path):
    path = npz(tmp_path / "a.npz", x_train=X, y_train=Y, class_names=np.array([b"cat", b"dog"]))
    assert list(open_images(path).classes) == ["cat", "dog"]


def test_class_names_that_are_no_list_are_refused(tmp_path):
    with pytest.raises(InvalidData):
        open_images(npz(tmp_path / "a.npz", x_train=X, y_train=Y, class_names=np.array("cat")))


@pytest.mark.parametrize(
    "pixels",
    [X.astype(np.float32), X.astype(np.int64), X[0], X[..., :1], X.transpose(0, 3, 1, 2), X[:0], X[:, :0]],
    ids=["float", "int64", "3-d", "one channel", "channels first", "no image", "no row"],
)
def test_arrays_of_another_type_or_shape_are_refused(tmp_path, pixels):
    with pytest.raises(InvalidData, match=r"x_train is .*, expected uint8 \[N,H,W,3\]"):
        open_images(npz(tmp_path / "a.npz", x_train=pixels))


@pytest.mark.parametrize(
    "labels",
    [
        Y[:2],
        np.array([0, 1, 1, 0]),
        Y[:, None],
        np.array(1),
        np.array([0, -1, 1]),
        Y.astype(float),
        np.array(list("abc")),
    ],
    ids=["too few", "too many", "2-d", "0-d", "negative", "float", "text"],
)
def test_labels_that_are_not_one_class_number_an_image_are_refused(tmp_path, labels):
    with pytest.raises(InvalidData, match=r"y_train is .*, expected 3 class numbers"):
        open_images(npz(tmp_path / "a.npz", x_train=X, y_train=labels))


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("key", ["x_train", "y_train", "class_names"])
def test_pickled_objects_are_refused_and_not_run(tmp_path, key):
    arrays = {"x_train": X, "y_train": Y, key: np.array([Trap(tmp_path / "sprung")], dtype=object)}
    with pytest.raises(InvalidData, match="allow_pickle"):
        open_images(npz(tmp_path / "a.npz", **arrays))
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_named_npz_is_refused_and_not_run(tmp_path):
    path = tmp_path / "a.npz"
    with path.open("wb") as file:
        np.array([Trap(tmp_path / "sprung")], dtype=object).dump(file)
    with pytest.raises(InvalidData):
        open_images(path)
    assert not (tmp_path / "sprung").exists()


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(InvalidData):
        open_images(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"just text\n", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_npz_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InvalidData, match=r"a\.npz is neither an image folder nor an \.npz of arrays"):
        open_images(tmp_path / "a.npz")


def test_an_npz_member_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train", b"text")
    with pytest.raises(InvalidData):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_npz_is_refused(tmp_path, part):
    data = npz(tmp_path / "a.npz", x_train=X, y_train=Y).read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InvalidData):
        open_images(tmp_path / "a.npz")


def test_a_damaged_compressed_npz_is_refused_or_reads_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x_train=pixels)
    data = path.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            images = open_images(path, "train")
        except InvalidData:
            continue
        assert np.array_equal(np.asarray(images.image(3)), pixels[3]), place


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".jfif", "JPEG"), (".JPE", "JPEG"), (".apng", "PNG"), (".dib", "DIB"), (".pbm", "PPM"), (".pnm", "PPM")],
)
def test_rarer_suffixes_of_formats_that_are_decoded_are_images(suffix, kind, tmp_path):
    Image.new("1" if suffix == ".pbm" else "RGB", (4, 3)).save(tmp_path / f"a{suffix}", kind)
    assert open_images(tmp_path).image(0).size == (4, 3)
