"""A set of images on disk, in a fixed order: an image folder or an `.npz` of arrays."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from PIL import Image

from smn_core.errors import InvalidData, InvalidImage
from smn_core.imagefile import read_image_file
from smn_core.names import sayable
from smn_core.pixels import decode

SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".jp2",
    }
)
MAX_CLASSES = 1_000_000
MADE = ("last.ckpt", "cascade.safetensors", "race.json")
"""What tells the folders of runs, cascades and races."""


@runtime_checkable
class ImageSet(Protocol):
    """Images in a fixed order, with labels where they are known (indices into `classes`)."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Int64[ndarray, "n"] | None: ...
    @property
    def classes(self) -> Sequence[str]: ...

    def image(self, index: int, draft_px: int | None = None) -> Image.Image:
        """One image as RGB; a JPEG may be decoded at a reduced scale that keeps `draft_px`."""


@dataclass(frozen=True)
class FolderSet:
    """Every image below a folder, in sorted order of relative paths; the first folder of a path is its class.

    `others` counts the files of other kinds by their suffix: they are no images of the set.
    """

    root: Path
    names: Sequence[str]
    labels: Int64[ndarray, "n"] | None
    classes: Sequence[str]
    others: Mapping[str, int] = field(default_factory=dict)

    def image(self, index: int, draft_px: int | None = None) -> Image.Image:
        path = self.root / self.names[index]
        try:
            return decode(read_image_file(path), draft_px=draft_px)
        except OSError as error:
            raise InvalidImage(f"cannot read {path}: {error.strerror}") from error
        except InvalidImage as error:
            raise type(error)(f"{path}: {error}") from error


@dataclass(frozen=True)
class ArraySet:
    """The images of one split of an `.npz`, uint8 NHWC, in the order of the array."""

    pixels: ndarray
    names: Sequence[str]
    labels: Int64[ndarray, "n"] | None
    classes: Sequence[str]

    def image(self, index: int, draft_px: int | None = None) -> Image.Image:  # noqa: ARG002 (nothing to decode)
        return Image.fromarray(self.pixels[index])


def open_images(path: Path | str, split: str | None = None) -> ImageSet:
    """Open an image folder, or the arrays `x_<split>, y_<split>` of an `.npz`.

    A folder with a subfolder of the split's name is that subfolder. Without a split, a folder is taken whole and an
    `.npz` must have one split only.

    Raises:
        InvalidData: nothing there, no image in it, no such split, arrays of a wrong shape or type.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, split)
    if path.is_file():
        return _open_npz(path, split)
    raise InvalidData(f"{path} does not exist: give an image folder or an .npz")


def _open_folder(path: Path, split: str | None) -> FolderSet:
    root = path / split if split is not None else path
    if not root.is_dir():
        raise InvalidData(f"{path} has no folder {split!r}")
    others: Counter[str] = Counter()
    names = sorted(_image_paths(root, others))
    if not names:
        there = f"; there are {say_others(others)}" if others else ""
        raise InvalidData(f"{root} has no image ({', '.join(sorted(SUFFIXES))}){there}")
    folders = [sayable(name.split("/")[0]) if "/" in name else "" for name in names]
    if "" in folders:
        return FolderSet(root, names, None, (), others)
    classes = sorted(set(folders))
    index = {name: i for i, name in enumerate(classes)}
    return FolderSet(root, names, np.array([index[f] for f in folders], np.int64), classes, others)


def say_others(others: Mapping[str, int]) -> str:
    """Counts by suffix as a reader wants them, the most of a kind first: `12 .mov, 3 .txt, 1 without suffix`."""
    ordered = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in ordered)


def _image_paths(root: Path, others: Counter[str]) -> Iterator[str]:
    """The paths of images; other files that are not hidden are counted by their suffix.

    Raises:
        InvalidData: a folder cannot be looked into. Passed over, its images would be missing from what is made of them.
    """
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_refuse_folder):
        here = Path(folder)
        if here.is_symlink() and here.resolve() in {parent.resolve() for parent in here.parents}:  # back up the tree
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_made(here / name)]
        for file in files:
            if file.startswith("."):
                continue
            if (suffix := Path(file).suffix.lower()) in SUFFIXES:
                yield Path(folder, file).relative_to(root).as_posix()
            else:
                others[suffix] += 1


def _is_made(folder: Path) -> bool:
    """Whether `smn train` or `smn cascade` made a folder: its plots are no images of the set."""
    try:
        return any((folder / name).exists() for name in MADE)
    except PermissionError as error:
        raise _unseen(folder, error) from error


def _refuse_folder(error: OSError) -> None:
    raise _unseen(error.filename, error) from error


def _unseen(folder: Path | str, error: OSError) -> InvalidData:
    return InvalidData(
        f"cannot look into the folder {folder}: {error.strerror}: make it readable, or name a folder without it"
    )


def array_splits(path: Path) -> list[str]:
    """The splits of an `.npz`: `test` where it has an array `x_test`.

    Raises:
        InvalidData: it is not there, or no `.npz`.
    """
    if not path.is_file():
        raise InvalidData(f"{path} does not exist: give an image folder or an .npz")
    try:
        with path.open("rb") as file, _npz(file) as arrays:
            return _splits(arrays.files)
    except Exception as error:  # zipfile and numpy raise whatever damaged bytes lead them to
        raise InvalidData(f"{path} is neither an image folder nor an .npz of arrays: {error}") from error


def _splits(names: Iterable[str]) -> list[str]:
    return sorted(name[2:] for name in names if name.startswith("x_"))


def _npz(file: IO[bytes]) -> Any:
    if file.read(2) != b"PK":
        raise ValueError("it is no zip archive, as numpy.savez writes")
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _open_npz(path: Path, split: str | None) -> ArraySet:
    try:
        with path.open("rb") as file, _npz(file) as arrays:
            splits = _splits(arrays.files)
            if not splits:
                raise InvalidData(
                    f"{path} has the arrays {', '.join(arrays.files)}: name them x_train and y_train, x_test ..."
                )
            if split is None and len(splits) == 1:
                split = splits[0]
            if split is not None and split not in splits:
                raise InvalidData(f"{path} has the splits {splits}, not {split!r}")
            if split is None:
                raise InvalidData(f"{path} has the splits {splits}: choose one with --split")
            pixels = np.asarray(arrays[f"x_{split}"])  # a member that is no array comes as bytes
            labels = np.asarray(arrays[f"y_{split}"]) if f"y_{split}" in arrays.files else None
            named = np.asarray(arrays["class_names"]).astype(str).tolist() if "class_names" in arrays.files else None
    except InvalidData:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise whatever damaged bytes lead them to
        raise InvalidData(f"{path} is neither an image folder nor an .npz of arrays: {error}") from error
    if named is not None and not isinstance(named, list):
        raise InvalidData(f"{path}: class_names is not a list")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise InvalidData(f"{path}: x_{split} is {pixels.dtype} {list(pixels.shape)}, expected uint8 [N,H,W,3]")
    return ArraySet(pixels, [str(i) for i in range(len(pixels))], *_labels(path, split, labels, len(pixels), named))


def _labels(
    path: Path, split: str, labels: ndarray | None, n_images: int, named: list[str] | None
) -> tuple[Int64[ndarray, "n"] | None, Sequence[str]]:
    """Labels and classes: the named ones; without names the class numbers that occur, which may lie far apart."""
    if labels is None:
        return None, ()
    if labels.shape != (n_images,) or labels.dtype.kind not in "iu":
        raise InvalidData(
            f"{path}: y_{split} is {labels.dtype} {list(labels.shape)}, expected {n_images} class numbers"
        )
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        found = f"{labels.min()} to {labels.max()}"
        raise InvalidData(f"{path}: y_{split} is {found}, expected {n_images} class numbers from 0")
    present, numbers = np.unique(labels, return_inverse=True)
    if named is None:
        return numbers.reshape(-1).astype(np.int64), [str(number) for number in present]
    if len(named) <= present[-1]:
        raise InvalidData(f"{path}: class_names has {len(named)} names, and y_{split} goes up to {present[-1]}")
    names = list(map(sayable, named))
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise InvalidData(f"{path}: class_names has {twice!r} more than once")
    return labels.astype(np.int64), names
