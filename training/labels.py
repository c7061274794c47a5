"""Labels: match the classes of two splits by name, and draw a few labels of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from PIL import Image

from smn_core.errors import InvalidArgument, InvalidData
from smn_core.imageset import ImageSet


def say_why_unlabelled(images: ImageSet) -> str:
    """Why a set has no labels, for the end of a message; "" where there is nothing to add.

    One image beside class folders takes the labels of all: it has none.
    """
    loose = [name for name in images.names if "/" not in name]
    if not 0 < len(loose) < len(images.names):
        return ""
    more = f" and {len(loose) - 1:,} more lie" if len(loose) > 1 else " lies"
    return f": {loose[0]}{more} beside the class folders: move {'them' if len(loose) > 1 else 'it'} away"


def name_smallest(labels: Int64[ndarray, "n"], classes: Sequence[str] = ()) -> tuple[str, int]:
    """The class of the fewest labels, as a message names it, and how many it has; the first of equal ones."""
    present, counts = np.unique(labels, return_counts=True)
    number, count = int(present[counts.argmin()]), int(counts.min())
    return f"class {classes[number] if number < len(classes) else number}", count


def say_readable(count: int) -> str:
    """So many readable images, in words."""
    return f"{count} readable image{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Renumbered:
    """A set of images whose labels are the class numbers of another set."""

    source: ImageSet
    labels: Int64[ndarray, "n"]
    classes: list[str]

    @property
    def names(self) -> list[str]:
        return list(self.source.names)

    def image(self, index: int, draft_px: int | None = None) -> Image.Image:
        return self.source.image(index, draft_px)


def renumber_classes(known: ImageSet, images: ImageSet) -> ImageSet:
    """`images` with the class numbers of `known`, matched by name: each set numbers only its own classes.

    Raises:
        InvalidData: `images` has a class that `known` lacks.
    """
    if images.labels is None or known.labels is None or list(images.classes) == list(known.classes):
        return images
    numbers = {name: number for number, name in enumerate(known.classes)}
    present = [images.classes[number] for number in np.unique(images.labels)]
    if unknown := [name for name in present if name not in numbers]:
        raise InvalidData(
            f"the train split has no class {', '.join(unknown[:5])}: it has {', '.join(known.classes[:20])}"
        )
    table = np.array([numbers.get(name, -1) for name in images.classes], np.int64)
    return Renumbered(images, table[images.labels], list(known.classes))


def parse_amount(text: str) -> int | float:
    """Parse the value of `--labels`: `0.1` and `1.0` are fractions, `1` and `20` are numbers for every class.

    Raises:
        InvalidArgument: it is neither.
    """
    try:
        amount: int | float = int(text) if text.strip().isdecimal() else float(text)
    except ValueError as error:
        raise InvalidArgument(f"--labels {text!r} is no number") from error
    if isinstance(amount, float) and amount > 1 and amount.is_integer():
        amount = int(amount)
    require_amount(amount)
    return amount


def require_amount(amount: float) -> None:
    """Raise InvalidArgument unless it is a fraction in (0, 1] or a positive int."""
    if not (0 < amount <= 1 or (isinstance(amount, int) and amount > 0)):
        raise InvalidArgument(f"--labels {amount}: give a fraction, 0.1 or 1.0, or a whole number for every class")


def pick_labels(
    labels: Int64[ndarray, "n"], amount: float, seed: int, classes: Sequence[str] = ()
) -> Int64[ndarray, "m"]:
    """Draw a random part of the labelled images and return their indices, sorted.

    The draw depends on (labels, amount, seed) alone, so methods that are compared see the same images.

    Args:
        amount: a fraction of all images in (0, 1]; an int is a number of images of every class.
        classes: names for the message.

    Raises:
        InvalidArgument: the amount is not positive, or a class has fewer images.
    """
    require_amount(amount)
    rng = np.random.default_rng(seed)
    if not isinstance(amount, int):
        n = max(1, round(amount * len(labels)))
        return np.sort(rng.permutation(len(labels))[:n])
    picked = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if amount > len(members):
            name = classes[label] if label < len(classes) else label
            raise InvalidArgument(f"--labels {amount}: class {name} has {len(members)} images")
        picked.append(rng.permutation(members)[:amount])
    return np.sort(np.concatenate(picked))
