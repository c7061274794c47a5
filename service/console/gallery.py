"""The operator's pictures: a folder that `smn serve --gallery DIR` names, served by id, never by path.

An id is a hash of where a picture is, how large and how old, so a picture that changes is another one. The folder is
looked through once, at start. Pictures are small squares, cut from the middle as a backbone sees them, and made by
decode workers with the server's bounds.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
from collections import OrderedDict
from concurrent.futures import Executor
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from service.decoding.pool import DecodePool
from smn_core.errors import InvalidArgument, InvalidImage, NotFound

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm"])
MOST_PICTURES = 20_000
SIDE_PX = 384
"""The side that a worker decodes to; smaller ones are scaled down from it."""
SMALLEST_PX = 32
SQUARE = {"input_size": (3, SIDE_PX, SIDE_PX), "mean": (1.0, 1.0, 1.0), "interpolation": "bicubic", "crop_pct": 1.0}
CACHE_BYTES = 64 * 2**20
QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """One picture; `label` is the name of the first folder that it lies in, if any."""

    id: str
    place: Path
    label: str | None


class Gallery:
    """Lives on one event loop from `start` on.

    Args:
        folder: what is shown; nothing outside of it is, whatever links it has.
        max_bytes: of one file; a larger one is left out.
        max_pixels, memory_bytes, cpu_s: bounds of a decode, as of a request's images.
        threads: read files and write JPEGs.

    Raises:
        InvalidArgument: there is no such folder.
    """

    def __init__(
        self, folder: Path, threads: Executor, *, max_bytes: int, max_pixels: int, memory_bytes: int, cpu_s: float
    ) -> None:
        if not folder.is_dir():
            raise InvalidArgument(f"--gallery {folder}: no such folder")
        self._root, self._max_bytes, self._threads = folder.resolve(), max_bytes, threads
        self._pool = DecodePool(SQUARE, max_pixels, n_workers=2, memory_bytes=memory_bytes, cpu_s=cpu_s)
        self._pictures: dict[str, Picture] = {}
        self._left_out: set[str] = set()
        """Their places stay: a page may end with one, and the next begins after it."""
        self._made: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._made_bytes = 0
        self.unreadable = 0
        """Files that look like pictures and are none that can be read, as far as anybody has looked."""

    async def start(self) -> None:
        """Look through the folder, and start the workers."""
        scanned = asyncio.get_running_loop().run_in_executor(self._threads, self._scan)
        await self._pool.start()
        self._pictures, self.unreadable = await scanned

    def close(self) -> None:
        self._pool.close()

    def __len__(self) -> int:
        return len(self._pictures) - len(self._left_out)

    def page(self, limit: int, after: str | None) -> list[Picture]:
        """Up to `limit` pictures in order of their paths, those after an id, which may have been left out meanwhile."""
        if after and after not in self._pictures:
            raise _missing(after)
        ids = list(self._pictures)
        first = ids.index(after) + 1 if after else 0
        return [self._pictures[one] for one in islice(filter(self.has, ids[first:]), limit)]

    def has(self, picture_id: str) -> bool:
        return picture_id in self._pictures and picture_id not in self._left_out

    def picture(self, picture_id: str) -> Picture:
        """The picture that an id means; NotFound where there is none."""
        if not self.has(picture_id):
            raise _missing(picture_id)
        return self._pictures[picture_id]

    async def square(self, picture_id: str, side_px: int, who: str) -> bytes:
        """A JPEG of the middle of a picture, `side_px` wide and high.

        Raises:
            NotFound: no such picture, or none any more.
            InvalidImage: it cannot be decoded; from then on it is left out.
        """
        picture, key = self.picture(picture_id), (picture_id, side_px)
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        data = await self.read(picture)
        try:
            pixels = await self._pool.decode(who, [data])
        except InvalidImage:
            self.leave_out(picture_id)
            raise
        made = await asyncio.get_running_loop().run_in_executor(self._threads, _jpeg, pixels[0], side_px)
        if key not in self._made:
            self._made[key] = made
            self._made_bytes += len(made)
            while self._made_bytes > CACHE_BYTES:
                self._made_bytes -= len(self._made.popitem(last=False)[1])
        return made

    async def read(self, picture: Picture) -> bytes:
        """The bytes of a picture's file; NotFound where it is gone, or is not what it was any more."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, picture)

    def leave_out(self, picture_id: str) -> None:
        """Show a picture no more: it cannot be decoded."""
        if self.has(picture_id):
            self._left_out.add(picture_id)
            self.unreadable += 1

    def _read(self, picture: Picture) -> bytes:
        try:
            handle = os.open(picture.place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(f"picture {picture.id} is gone") from error
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            # What was opened, not what the path said before: a folder on the way may have become a link meanwhile.
            inside = Path(os.readlink(f"/proc/self/fd/{handle}")).is_relative_to(self._root)  # noqa: PTH115
            if not inside or not stat.S_ISREG(found.st_mode) or found.st_size > self._max_bytes:
                raise NotFound(f"picture {picture.id} is not what it was")
            return file.read(self._max_bytes)

    def _scan(self) -> tuple[dict[str, Picture], int]:
        found: dict[str, Picture] = {}
        left_out = 0
        for folder, folders, files in os.walk(self._root):  # follows no linked folder
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                place = Path(folder) / name
                if name.startswith(".") or place.suffix.lower() not in SUFFIXES:
                    continue
                picture = self._picture_at(place)
                if picture is None or len(found) >= MOST_PICTURES:
                    left_out += 1
                else:
                    found[picture.id] = picture
        return found, left_out

    def _picture_at(self, place: Path) -> Picture | None:
        """None of what is no file of a sound size, or is a link out of the folder."""
        try:
            if place.is_symlink() and not place.resolve(strict=True).is_relative_to(self._root):
                return None
            facts = place.stat()
        except (OSError, RuntimeError):  # a link to nothing, or to itself
            return None
        if not stat.S_ISREG(facts.st_mode) or not 0 < facts.st_size <= self._max_bytes:
            return None
        relative = place.relative_to(self._root)
        said = b"\0".join((os.fsencode(relative), b"%d" % facts.st_size, b"%d" % facts.st_mtime_ns))
        label = relative.parts[0].encode("utf-8", "replace").decode() if len(relative.parts) > 1 else None
        return Picture(sha256(said).hexdigest()[:24], place, label)


def _missing(picture_id: str) -> NotFound:
    return NotFound(f"the gallery has no picture {picture_id[:64]!r}")


def _jpeg(pixels: np.ndarray, side_px: int) -> bytes:
    image = Image.fromarray(pixels)
    if side_px != SIDE_PX:
        image = image.resize((side_px, side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
