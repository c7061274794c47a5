"""What images go through in this process: masks and cascades by file or name, prepared once for one engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from jaxtyping import Float32
from numpy import ndarray
from torch import Tensor

from smn_core.cascade.cascade import embed
from smn_core.cascade.file import check_fits, open_folder
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument
from smn_core.mask import Head
from smn_core.maskfile import read_mask
from smn_core.spaces import space_of_cascade, space_of_mask
from smn_core.vectors import vectors_of_mask

ROOT = "root"
Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """How model inputs become vectors: the function, how wide they are, their space, whose digest, which classifier."""

    embed: Callable[[Float32[Tensor, "n 3 h w"]], Float32[ndarray, "n d"]]
    width: int
    space: str
    digest: str
    head: Head | None


class Ways:
    """The masks and cascades of one engine.

    Args:
        engine: of their backbone.
        folder: in it the mask `flowers` is flowers.smn, and the cascade `places` is a folder of that name.
        lock: is held while the engine is used.
    """

    def __init__(self, engine: Engine, folder: Path, lock: Lock) -> None:
        self._engine, self._folder, self._lock = engine, folder, lock
        self._known: dict[tuple[Path | None, str | None], tuple[Stamp, Way]] = {}

    def find(self, mask: str | Path | None, cascade: str | Path | None, mode: str | None) -> Way:
        """What was prepared for a mask or cascade; prepared now if it is new, or its files were changed since.

        Raises:
            InvalidArgument: both, a mode without a cascade, or nothing there has that name.
            InvalidMask, WrongBackbone, InvalidCascade: it cannot be read, or does not fit the backbone.
        """
        if mask is not None and cascade is not None:
            raise InvalidArgument("mask and cascade: give one of them")
        if mode is not None and cascade is None:
            raise InvalidArgument("mode is for a cascade")
        path: Path | None = None
        if cascade is not None:
            path = self._place(cascade, "")
        elif mask is not None and mask != ROOT:
            path = self._place(mask, ".smn")
        files = [] if path is None else sorted(path.iterdir()) if path.is_dir() else [path]
        stamp = _stamp(files)
        with self._lock:
            known = self._known.get((path, mode))
            if known is not None and known[0] == stamp:
                return known[1]
            way = self._cascade(path, mode) if path is not None and cascade is not None else self._mask(path)
            self._known[path, mode] = (stamp, way)
            return way

    def _place(self, name: str | Path, suffix: str) -> Path:
        places = (Path(name), self._folder / name, self._folder / f"{name}{suffix}")
        found = next((place for place in places if (place.is_file() if suffix else place.is_dir())), None)
        if found is None:
            what = "mask file" if suffix else "folder of a cascade"
            raise InvalidArgument(f"{name} is no {what}, nor the name of one in {self._folder.resolve()}")
        return found.resolve()

    def _mask(self, path: Path | None) -> Way:
        backbone = self._engine.backbone
        task = read_mask(path, backbone.layout) if path is not None else None
        digest = task.digest if task is not None else None
        if task is not None:
            _warn(self._engine.prepare(task))

        def run(x: Float32[Tensor, "n 3 h w"]) -> Float32[ndarray, "n d"]:
            return self._engine.embed(x, [Segment(digest, 0, len(x))]).embeddings.numpy()

        head = task.head if task is not None else None
        return Way(run, backbone.n_features, space_of_mask(backbone, task), digest or ROOT, head)

    def _cascade(self, folder: Path, mode: str | None) -> Way:
        backbone, found = self._engine.backbone, open_folder(folder)
        cascade, masks = found.cascade, found.masks(self._engine.backbone.layout)
        check_fits(cascade, backbone)
        chosen = cascade.choose_mode(mode)
        _warn(warning for mask in masks for warning in self._engine.prepare(mask))

        def run(x: Float32[Tensor, "n 3 h w"]) -> Float32[ndarray, "n d"]:
            return embed(self._engine, cascade, chosen, x).embeddings

        width = cascade.choose_dimensions(None, chosen, backbone.n_features)
        space = space_of_cascade(backbone, cascade, chosen, [vectors_of_mask(mask) for mask in masks])
        return Way(run, width, space, str(cascade.digest), cascade.heads.get(chosen))


def _stamp(files: Sequence[Path]) -> Stamp:
    found = [path.stat() for path in files]
    return tuple(number for each in found for number in (each.st_size, each.st_mtime_ns, each.st_ino))


def _warn(texts: Iterable[str]) -> None:
    for text in dict.fromkeys(texts):
        warnings.warn(text, stacklevel=5)
