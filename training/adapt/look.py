"""Look at the images before anything is learned from them: what is there, what cannot be used, what is there twice."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from PIL import Image

from smn_core.errors import InvalidData, InvalidImage
from smn_core.imageset import SUFFIXES, FolderSet, ImageSet
from training.copies import DRAFT_PX, group_copies, thumbnail
from training.data import TRAIN, Subset, open_split
from training.progress import Clock, Tell

FEWEST_IMAGES = 30
MOST_IMAGES = 10_000
TELL_EVERY_S = 10.0
DECODE_THREADS = 2
N_NAMED = 3


@dataclass(frozen=True)
class Found:
    """What was found.

    Args:
        images: those that can be read, and were looked at.
        groups: of each, the number of its group of near-copies, counted from 0.
        sides_px: least and greatest side.
        n_all: images by their names, readable or not.
        not_read: files that are no images, by suffix.
        unreadable: why each of these images cannot be read.
    """

    images: Subset
    groups: Int64[ndarray, "n"]
    sides_px: tuple[int, int]
    n_all: int
    not_read: dict[str, int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    @property
    def n_distinct(self) -> int:
        """Images, near-copies counted once."""
        return int(self.groups.max()) + 1 if len(self.groups) else 0


@dataclass(frozen=True)
class _Seen:
    """One image: the normalised thumbnail (zeros where it has one colour), and its sides."""

    thumbnail: Float32[ndarray, "p"]
    size_px: tuple[int, int]


def look(data: str, bound_s: float, tell: Tell, clock: Clock = time.monotonic) -> Found:
    """Open the images, read up to `MOST_IMAGES` of them within `bound_s` seconds, and tell what they are.

    What was not reached in time is left out: a near-copy of it could lie on either side of the cut.

    Raises:
        InvalidData: nothing that can be learned from: no images, too few, all alike, all of one colour.
    """
    images, not_read = _open(data)
    n_all = len(images.names)
    tell(f"{data}: {n_all:,} images; looking at them, {bound_s:.0f} s at most")
    for line in _name_not_read(not_read):
        tell(line)
    kept, seen, unreadable = _read(images, clock() + bound_s, tell, clock)
    if unreadable:
        tell(f"{len(unreadable):,} cannot be read and are left out: {'; '.join(unreadable[:N_NAMED])}")
    _require_enough(data, len(seen), n_all, unreadable)
    thumbnails = np.stack([one.thumbnail for one in seen])
    groups = group_copies(thumbnails)
    sides = [side for one in seen for side in one.size_px]
    order = np.argsort(kept)
    found = Found(
        Subset(images, np.array(kept, np.int64)[order]), groups[order], (min(sides), max(sides)), n_all, not_read,
        tuple(unreadable),
    )  # fmt: skip
    _require_difference(data, found, thumbnails)
    tell(_summarise(found))
    return found


def _open(data: str) -> tuple[ImageSet, dict[str, int]]:
    """The images, and what else lies among them."""
    root = Path(data, TRAIN) if Path(data, TRAIN).is_dir() else Path(data)
    not_read = _count_others(root) if root.is_dir() else {}
    try:
        return open_split(data, TRAIN), not_read
    except InvalidData as error:
        raise InvalidData("; ".join([str(error), *_name_not_read(not_read)])) from error


def _count_others(root: Path) -> dict[str, int]:
    """Files below a folder that are not taken for images, by suffix, the most frequent first; hidden ones left out."""
    others: Counter[str] = Counter()
    for _, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(".run")]
        suffixes = (Path(name).suffix.lower() for name in files if not name.startswith("."))
        others.update(suffix or "no suffix" for suffix in suffixes if suffix not in SUFFIXES)
    return dict(others.most_common())


def _name_not_read(not_read: dict[str, int]) -> list[str]:
    if not not_read:
        return []
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in islice(not_read.items(), 6))
    convert = "; convert them to JPEG to use them" if not_read.keys() & {".cr2", ".nef", ".dng"} else ""
    return [f"files of other kinds, not read: {kinds}{convert}"]


def _read(images: ImageSet, until: float, tell: Tell, clock: Clock) -> tuple[list[int], list[_Seen], list[str]]:
    """Read a random sample of the images, as large as time allows; numbers, what was seen, what could not be read."""
    picked = np.random.default_rng(0).permutation(len(images.names))[:MOST_IMAGES]
    kept: list[int] = []
    seen: list[_Seen] = []
    unreadable: list[str] = []
    told = clock()
    with ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="smn-look") as pool:
        for first in range(0, len(picked), 8 * DECODE_THREADS):
            part = picked[first : first + 8 * DECODE_THREADS]
            for index, one in zip(part, pool.map(lambda i: _see(images, int(i)), part), strict=True):
                if isinstance(one, _Seen):
                    kept.append(int(index))
                    seen.append(one)
                else:
                    unreadable.append(one)
            now = clock()
            # Too few to learn from are never the fault of a slow disk: the first ones are read in any case.
            if now > until and len(kept) >= FEWEST_IMAGES:
                break
            if now - told > TELL_EVERY_S:
                told = now
                tell(f"  {len(kept):,} of {len(picked):,} looked at")
    return kept, seen, unreadable


def _see(images: ImageSet, index: int) -> _Seen | str:
    try:
        image = images.image(index, DRAFT_PX)
        return _Seen(thumbnail(image), _size_px(images, index, image))
    except InvalidImage as error:
        return str(error)


def _size_px(images: ImageSet, index: int, image: Image.Image) -> tuple[int, int]:
    """Width and height as they are on disk: a JPEG was decoded smaller."""
    if isinstance(images, FolderSet):
        with Image.open(images.root / images.names[index]) as header:
            return header.size
    return image.size


def _require_enough(data: str, n_read: int, n_all: int, unreadable: list[str]) -> None:
    if n_read >= FEWEST_IMAGES:
        return
    why = f", {len(unreadable)} more cannot be read ({unreadable[0]})" if unreadable else ""
    raise InvalidData(
        f"{data} has {n_read} readable image{'' if n_read == 1 else 's'} of {n_all}{why}: a mask needs "
        f"{FEWEST_IMAGES} at least, some hundreds are better; add images, or serve the backbone as it is"
    )


def _require_difference(data: str, found: Found, thumbnails: Float32[ndarray, "n p"]) -> None:
    if found.n_distinct >= FEWEST_IMAGES:
        return
    if not thumbnails.any():
        raise InvalidData(f"{data}: every image is of one colour, black or another: check how they were written")
    alike = (
        "all images are alike"
        if found.n_distinct == 1
        else f"only {found.n_distinct} images differ, the rest are near-copies"
    )
    raise InvalidData(f"{data}: {alike}: a mask needs {FEWEST_IMAGES} different images at least; add others")


def _summarise(found: Found) -> str:
    n = len(found.images.names)
    low, high = found.sides_px
    sides = f"{low:,} px" if low == high else f"{low:,} to {high:,} px"
    copies = n - found.n_distinct
    left = found.n_all - n - len(found.unreadable)
    more = f"; {left:,} not reached in this time, left out" if left else ""
    return f"{n:,} images to learn from, sides {sides}; {copies:,} near-copies of others{more}"


def cut(found: Found, seed: int) -> tuple[Int64[ndarray, "s"], Int64[ndarray, "u"]]:
    """Cut the images into those to learn from and those kept unseen for the verdict, near-copies on one side.

    A fifth is kept unseen, 10 at least and 500 at most; numbers are places in `found.images`.
    """
    n = len(found.groups)
    wanted = min(500, max(10, n // 5))
    unseen: list[int] = []
    sizes = np.bincount(found.groups)
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        # A group that is too large for the unseen part is for learning.
        if len(unseen) + sizes[group] <= wanted:
            unseen += np.flatnonzero(found.groups == group).tolist()
        if len(unseen) >= wanted:
            break
    kept = np.zeros(n, np.bool_)
    kept[unseen] = True
    return np.flatnonzero(~kept), np.flatnonzero(kept)
