"""Folders of digits as photos, and a clock that goes on by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.training.builders import digits


class Ticking:
    """A clock on which every look takes the same time: what follows does not depend on the machine."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += self._tick_s
        return self.now_s


def save_photos(folder: Path, n: int, change: Callable[[Image.Image], Image.Image] = lambda image: image) -> Path:
    """The first n digits as PNG files, all different; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(digits()["x_train"][:n]):
        change(Image.fromarray(pixels)).save(folder / f"{i:03d}.png")
    return folder


def save_plain(folder: Path, n: int, *colours: int) -> Path:
    """n photos, each of one grey; the colours take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(np.full((32, 32, 3), colours[i % len(colours)], np.uint8)).save(folder / f"{i:03d}.png")
    return folder
