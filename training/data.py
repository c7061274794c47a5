"""Images for learning, from a folder, an `.npz` or `torchvision:NAME`, and the batches of a run.

A batch depends on (seed, step) alone. The augmentation of a row is seeded by (seed, step, row). So a run that is
resumed at step s sees exactly what an uninterrupted run sees from step s on, with any number of workers or processes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from smn_core.errors import InvalidData, InvalidImage
from smn_core.imageset import FolderSet, ImageSet, array_splits, open_images
from smn_core.names import sayable
from training.labels import Renumbered, say_why_unlabelled
from training.progress import holding_stops

# The splits of each torchvision set. A set with None has no splits of its own: a fixed seed cuts it 80 to 20.
TORCHVISION: dict[str, tuple[str, dict[str, dict[str, Any]] | None]] = {
    "cifar10": ("CIFAR10", {"train": {"train": True}, "test": {"train": False}}),
    "cifar100": ("CIFAR100", {"train": {"train": True}, "test": {"train": False}}),
    "dtd": ("DTD", {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}),
    "flowers102": ("Flowers102", {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}),
    "pets": ("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "eurosat": ("EuroSAT", None),
    "sun397": ("SUN397", None),
}
TORCHVISION_ROOT = Path("~/.cache/smn/torchvision")
CUT_SEED, CUT_TRAIN, CUT_SPLITS = 0, 0.8, ("train", "test")
TRAIN = "train"
SHARED_MEMORY = Path("/dev/shm")
SPLITS = frozenset({TRAIN, "test", "val", "valid", "validation", "training", "testing", "dev", "eval"})
"""Names of splits. If all folders of a set bear such names, they are splits and not classes."""


@dataclass(frozen=True)
class TorchvisionSet:
    """A torchvision classification set as an ImageSet. `indices` are the images of the split."""

    source: Any
    indices: ndarray
    labels: Int64[ndarray, "n"] | None
    classes: list[str]

    @property
    def names(self) -> list[str]:
        return [str(i) for i in self.indices]

    def image(self, index: int, draft_px: int | None = None) -> Image.Image:  # noqa: ARG002 (torchvision decodes)
        try:
            return self.source[int(self.indices[index])][0].convert("RGB")
        except OSError as error:
            raise InvalidImage(f"image {self.indices[index]}: {error}") from error


def open_split(data: str, split: str) -> ImageSet:
    """Open the images of a split of `torchvision:NAME`, an image folder or an `.npz`.

    A folder without splits is its own train split as a whole.

    Raises:
        InvalidData: as `open_images`; there is no such split; the torchvision name is unknown; the set is not on this
            machine and cannot be fetched.
    """
    if data.startswith("torchvision:"):
        return _open_torchvision(data.removeprefix("torchvision:"), split)
    path = _require_path(data)
    if not path.is_dir() or (path / split).is_dir():
        return open_images(path, split)
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if folders and all(name.lower() in SPLITS for name in folders):
        raise InvalidData(f"{path} has the splits {', '.join(folders)}, not {split!r}")
    if split != TRAIN:
        raise InvalidData(f"{path} has no folder {split!r}; without splits of its own it is {TRAIN!r} as a whole")
    return open_images(path)


def open_labelled(data: str) -> ImageSet:
    """The train split of `data`, where it has splits; it must have labels.

    Raises:
        InvalidData: it has none, or cannot be opened.
    """
    images = open_split(data, TRAIN)
    if images.labels is None:
        why = say_why_unlabelled(images) or ": give a folder for each class, with images in it"
        raise InvalidData(f"{data} has no labels{why}")
    return images


def name_data(data: str) -> str:
    """The name of a set, as files tell it: of a folder or an `.npz` the last part of its path."""
    return sayable(Path(data).name)


def has_split(data: str, split: str) -> bool:
    """Whether a set has a split of this name. The split itself may still be damaged.

    Raises:
        InvalidData: there is no set at all.
    """
    if data.startswith("torchvision:"):
        name = data.removeprefix("torchvision:").partition("@")[0]
        return split in ((TORCHVISION.get(name) or ("", None))[1] or CUT_SPLITS)
    path = _require_path(data)
    return (path / split).is_dir() if path.is_dir() else split in array_splits(path)


def _require_path(data: str) -> Path:
    if not data:
        raise InvalidData("--data is empty: give an image folder, an .npz or torchvision:NAME")
    return Path(data)


def _open_torchvision(name: str, split: str) -> TorchvisionSet:
    from torchvision import datasets

    name, _, root = name.partition("@")
    if name not in TORCHVISION:
        raise InvalidData(f"unknown set torchvision:{name}: choose {', '.join(TORCHVISION)}, or give a folder or .npz")
    class_name, splits = TORCHVISION[name]
    if splits is not None and split not in splits:
        raise InvalidData(f"torchvision:{name} has the splits {', '.join(splits)}, not {split!r}")
    folder = Path(root or TORCHVISION_ROOT).expanduser()
    kwargs = splits[split] if splits is not None else {}
    try:
        source = getattr(datasets, class_name)(str(folder), download=True, **kwargs)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidData(f"torchvision:{name} is not in {folder} and could not be fetched: {reason}") from error
    labels = _read_torchvision_labels(source)
    indices = np.arange(len(labels))
    if splits is None:
        indices = _cut(labels, split)
    return TorchvisionSet(source, indices, labels[indices], [str(c) for c in getattr(source, "classes", [])])


def _read_torchvision_labels(source: Any) -> Int64[ndarray, "n"]:
    for name in ("targets", "_labels"):
        if hasattr(source, name):
            return np.asarray(getattr(source, name), np.int64)
    raise InvalidData(f"{type(source).__name__} keeps its labels nowhere this version knows")


def _cut(labels: Int64[ndarray, "n"], split: str) -> Int64[ndarray, "m"]:
    order = np.random.default_rng(CUT_SEED).permutation(len(labels))
    n_train = round(CUT_TRAIN * len(labels))
    parts = {"train": order[:n_train], "test": order[n_train:]}
    if split not in parts:
        raise InvalidData(f"this torchvision set has the splits train and test, not {split!r}")
    return np.sort(parts[split])


@dataclass(frozen=True)
class Subset:
    """Some images of a set, in the order of `indices`."""

    source: ImageSet
    indices: Int64[ndarray, "n"]

    @property
    def names(self) -> list[str]:
        return [self.source.names[i] for i in self.indices]

    @property
    def labels(self) -> Int64[ndarray, "n"] | None:
        return None if self.source.labels is None else self.source.labels[self.indices]

    @property
    def classes(self) -> list[str]:
        return list(self.source.classes)

    def image(self, index: int, draft_px: int | None = None) -> Image.Image:
        return self.source.image(int(self.indices[index]), draft_px)


def others_among(images: ImageSet) -> Mapping[str, int]:
    """How many files of kinds that are not read lie among a folder's images, by suffix; of a part, in its whole."""
    while isinstance(images, Subset | Renumbered):
        images = images.source
    return images.others if isinstance(images, FolderSet) else {}


@dataclass(frozen=True)
class Item:
    """A request to a worker: the number of an image, and the seed of its augmentation."""

    index: int
    seed: int


@dataclass
class Batch:
    """Views of n images: a tensor [n,3,H,W] for each view, labels where all are known, names of skipped images."""

    views: list[Tensor]
    labels: Tensor | None
    skipped: list[str] = field(default_factory=list)

    def to(self, device: torch.device) -> Batch:
        labels = self.labels.to(device) if self.labels is not None else None
        return Batch([v.to(device, non_blocking=True) for v in self.views], labels, self.skipped)

    def share(self, memory: Path = SHARED_MEMORY) -> None:
        """Move the views into shared memory, where it has room for one such batch of every worker and one more.

        A plain container has 64 MB. In a full one the queue's thread fails, where nobody hears it, and the run would
        wait for a batch that never comes; or the write of a page kills the worker.
        """
        info = get_worker_info()
        needed = sum(view.nbytes for view in self.views) * (info.num_workers + 1 if info else 1)
        room = os.statvfs(memory)
        if room.f_bavail * room.f_frsize >= needed:
            with suppress(RuntimeError):  # another run was faster: what is left goes through the pipe
                for view in self.views:
                    view.share_memory_()

    def __reduce__(self) -> tuple[Any, ...]:
        """A tensor in shared memory is handed over there, any other one through the pipe, as an array."""
        views = [view if view.is_shared() else view.numpy() for view in self.views]
        return _unpack, (views, None if self.labels is None else self.labels.numpy(), self.skipped)


def _unpack(views: list[Any], labels: ndarray | None, skipped: list[str]) -> Batch:
    tensors = [view if isinstance(view, Tensor) else torch.from_numpy(view) for view in views]
    return Batch(tensors, None if labels is None else torch.from_numpy(labels), skipped)


class Views(Dataset[tuple[list[Tensor], int, list[str]]]):
    """The augmented views of an `Item`. If its image cannot be read, the next readable one takes its place."""

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Any], draft_px: int) -> None:
        self._images = images
        self._transform = transform
        self._draft_px = draft_px

    def __getitem__(self, item: Item) -> tuple[list[Tensor], int, list[str]]:
        skipped: list[str] = []
        n = len(self._images.names)
        for step in range(n):
            index = (item.index + step) % n
            try:
                image = self._images.image(index, self._draft_px)
            except InvalidImage as error:
                skipped.append(str(error))
                continue
            label = -1 if self._images.labels is None else int(self._images.labels[index])
            with seeded(item.seed):
                views = self._transform(image)
            return (views if isinstance(views, list) else [views]), label, skipped
        raise InvalidData(f"none of the {n} images can be read; the first: {skipped[0]}")


class seeded:
    """Seeds every global generator that augmentations draw from, and restores its state after the block."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
        random.seed(self._seed)
        np.random.seed(self._seed % 2**32)
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        torch.random.set_rng_state(self._states[2])


class StepSampler(Sampler[list[Item]]):
    """The batches of steps `first_step` to `total_steps`. Process `rank` of `world` gets its rows of each batch.

    Every epoch shuffles the images anew. The images at its end that fill no batch are dropped.
    """

    def __init__(
        self,
        n_images: int,
        batch_size: int,
        total_steps: int,
        seed: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._n, self._batch, self._total, self._seed = n_images, batch_size, total_steps, seed
        self._first, self._rank, self._world = first_step, rank, world

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[list[Item]]:
        for step in range(self._first, self._total):
            yield [self.item(step, row) for row in range(self._rank, self._batch, self._world)]

    def item(self, step: int, row: int) -> Item:
        """The image and the seed of row `row` in the batch of all processes at a step."""
        per_epoch = self._n // self._batch
        epoch, within = divmod(step, per_epoch)
        if getattr(self, "_order_of", None) != epoch:
            self._order = np.random.default_rng((self._seed, epoch)).permutation(self._n)
            self._order_of = epoch
        seed = np.random.SeedSequence((self._seed, step, row)).generate_state(1, np.uint64)[0]
        return Item(int(self._order[within * self._batch + row]), int(seed) >> 1)


class StepLoader(DataLoader[Any]):
    """A loader that starts at its sampler's first step, so that Lightning can resume in the middle of an epoch."""

    def __len__(self) -> int:
        return len(self.batch_sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        with holding_stops():  # workers are forked here
            return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing: the sampler starts at the right step already."""


def collate(rows: list[tuple[list[Tensor], int, list[str]]]) -> Batch:
    """Put rows of views, label (-1: unknown) and skipped names together into a batch, a worker's in shared memory."""
    views = [torch.stack(crop) for crop in zip(*(row[0] for row in rows), strict=True)]
    labels = torch.tensor([row[1] for row in rows])
    batch = Batch(views, labels if (labels >= 0).all() else None, [name for row in rows for name in row[2]])
    if get_worker_info() is not None:
        batch.share()
    return batch
