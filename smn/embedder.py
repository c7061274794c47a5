"""Images through masks in this process: the calls and the answers of `smn.Client`, without a server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from torch import Tensor

from smn.ways import ROOT, Way, Ways
from smn_core.ahead import in_order
from smn_core.answers import Embeddings, Label, Labels, Part, Row, Skipped
from smn_core.backbone import load_backbone, require_dimensions
from smn_core.collection import Collection
from smn_core.engine import Engine
from smn_core.errors import Conflict, InvalidArgument, InvalidImage
from smn_core.given import Images, Item, each_item
from smn_core.images import ImageReader
from smn_core.labels import most_probable, probabilities
from smn_core.mask import Head
from smn_core.shaping import shape
from smn_core.spaces import shape_space
from smn_core.spec import BackboneSpec
from smn_core.verbs.gathering import gather, gather_rows

T = TypeVar("T")


class Embedder:
    """One backbone in this process, and the masks and cascades that images go through. Safe to call from threads.

    Args:
        backbone: a timm name.
        weights: a file of weights; None: timm's pretrained ones.
        device: cpu, cuda, cuda:1; auto takes a GPU where there is one.
        masks: the folder in which `mask="flowers"` is flowers.smn, and `cascade="places"` the folder places.
        model_args, image_size, mean, std, crop_pct, dtype: as the flags of `smn embed`.
        slots: masks whose weights are kept ready side by side.
        batch_size: images a forward.
        workers: threads that decode.

    Raises:
        UnknownModel, InvalidWeights, WeightsUnavailable: the backbone cannot be loaded.
    """

    def __init__(
        self,
        backbone: str,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        masks: str | Path = ".",
        model_args: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        crop_pct: float | None = None,
        dtype: str = "float32",
        slots: int = 4,
        batch_size: int = 32,
        workers: int = 2,
    ) -> None:
        spec = BackboneSpec(
            backbone,
            Path(weights) if weights is not None else None,
            model_args or {},
            image_size,
            mean,
            std,
            crop_pct,
            device,
            dtype,
        )
        self.backbone = load_backbone(spec)
        self._lock = threading.Lock()
        self._ways = Ways(Engine(self.backbone, slots=slots), Path(masks), self._lock)
        self._reader = ImageReader(self.backbone.preprocess)
        self._batch_size, self._workers = batch_size, workers

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Nothing is open; a Client has this too."""

    def embed(
        self,
        images: Images,
        mask: str | Path | None = None,
        *,
        cascade: str | Path | None = None,
        mode: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        space: str | None = None,
        strict: bool = True,
        progress: bool = False,
    ) -> Embeddings:
        """Embeddings of images through a mask, a cascade or the untouched backbone.

        Args:
            images: paths, folders, bytes, PIL images, arrays, or an iterable of them, of any length.
            mask: a mask file, or the name of one in the folder `masks`; cascade: the folder of one, or its name.
            space: the id that the vectors must be in.
            strict: an image that cannot be read is an error. Otherwise it has no row and is named in `skipped`.
            progress: draw a bar on stderr.

        Raises:
            OtherSpace: the vectors are in another space than `space`.
            InvalidImage: an image that cannot be read.
            InvalidArgument: no images, or something that is none; no such mask.
            InvalidMask, WrongBackbone, InvalidCascade: the mask or cascade cannot be read, or does not fit.
        """
        parts = self._embed(images, mask, cascade, mode, normalize, dimensions, space, strict)
        return gather(parts, images, progress=progress).embeddings()

    def embed_each(
        self,
        images: Images,
        mask: str | Path | None = None,
        *,
        cascade: str | Path | None = None,
        mode: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
        space: str | None = None,
        strict: bool = True,
        progress: bool = False,
    ) -> Generator[Row, None, None]:
        """As `embed`, but yield a row an image as they are made: `images` may be endless.

        Without `strict` an image that cannot be read has a row too, with an error instead of a vector.
        """
        parts = self._embed(images, mask, cascade, mode, normalize, dimensions, space, strict)
        return gather_rows(parts, images, progress=progress)

    def classify(
        self,
        images: Images,
        mask: str | Path | None = None,
        *,
        cascade: str | Path | None = None,
        mode: str | None = None,
        top: int | None = None,
        space: str | None = None,
        strict: bool = True,
        progress: bool = False,
    ) -> Labels:
        """What a mask's classifier says of images: the `top` most probable classes of each, or all. Else as `embed`.

        Raises:
            Conflict: the mask has no classifier; `smn probe` fits one.
        """
        way = self._ways.find(mask, cascade, mode)
        if way.head is None:
            raise Conflict(f"{cascade or mask or ROOT} has no classifier: fit one with smn probe")
        if top is not None and top < 1:
            raise InvalidArgument(f"top {top}: at least one class is named")
        named = self._promise(way, space, normalize=False, dimensions=None)
        head = way.head

        def label(z: Float32[ndarray, "n d"]) -> list[Label]:
            return list(_label(head, z, top))

        parts = self._parts(each_item(images), way, label, named, strict=strict)
        return gather(parts, images, progress=progress).labels()

    def space(
        self,
        mask: str | Path | None = None,
        *,
        cascade: str | Path | None = None,
        mode: str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
    ) -> str:
        """The id of the space that `embed` with the same words answers in."""
        way = self._ways.find(mask, cascade, mode)
        require_dimensions(dimensions, way.width)
        return self._promise(way, None, normalize=normalize, dimensions=dimensions)

    def _embed(
        self,
        images: Images,
        mask: str | Path | None,
        cascade: str | Path | None,
        mode: str | None,
        normalize: bool,
        dimensions: int | None,
        space: str | None,
        strict: bool,
    ) -> Generator[Part[ndarray], None, None]:
        way = self._ways.find(mask, cascade, mode)
        require_dimensions(dimensions, way.width)
        named = self._promise(way, space, normalize=normalize, dimensions=dimensions)

        def shaped(z: Float32[ndarray, "n d"]) -> Sequence[ndarray]:
            return list(shape(z, dimensions, normalize=normalize))

        return self._parts(each_item(images), way, shaped, named, strict=strict)

    def _promise(self, way: Way, space: str | None, *, normalize: bool, dimensions: int | None) -> str:
        """The id of the vectors' space, if it is the one that was asked for."""
        cut = dimensions if dimensions is not None and dimensions < way.width else None
        named = shape_space(way.space, dimensions=cut, normalize=normalize)
        if space is not None:
            Collection(space=space).admit(named)
        return named

    def _parts(
        self,
        items: Iterable[Item],
        way: Way,
        turn: Callable[[ndarray], Sequence[T]],
        space: str,
        *,
        strict: bool,
    ) -> Generator[Part[T], None, None]:
        """A part a batch, in order; the next batches are decoded meanwhile. `turn` makes rows of embeddings."""
        jobs = (partial(self._load, some, strict) for some in _batches(items, self._batch_size))
        with closing(in_order(jobs, self._workers, self._workers, "smn-decode")) as batches:
            for kept, inputs, left in batches:
                if not kept:
                    yield Part((), (), left)
                    continue
                with self._lock:
                    z = way.embed(torch.stack(inputs))
                finite = np.isfinite(z).all(1)
                broken = [Skipped(i.number, i.name, "its embedding is not finite") for i in _where(kept, ~finite)]
                if broken and strict:
                    raise InvalidImage(str(broken[0]))
                rows = turn(z if finite.all() else z[finite])
                yield Part(_where(kept, finite), rows, [*left, *broken], way.digest, space)

    def _load(self, items: Sequence[Item], strict: bool) -> tuple[list[Item], list[Tensor], list[Skipped]]:
        kept, inputs, left = [], [], []
        for item in items:
            try:
                inputs.append(self._input(item))
                kept.append(item)
            except InvalidImage as error:
                if strict:
                    raise type(error)(f"{item.name}: {error}") from error
                left.append(Skipped(item.number, item.name, str(error)))
        return kept, inputs, left

    def _input(self, item: Item) -> Float32[Tensor, "3 h w"]:
        content = item.read()
        if isinstance(content, bytes):
            return self._reader(content)
        expected = (3, *self._reader.input_px)
        if content.shape != expected:
            raise InvalidArgument(f"{item.name} is an array {list(content.shape)}, expected {list(expected)}")
        if not np.isfinite(content).all():
            raise InvalidImage("the array has a value that is not finite")
        return torch.from_numpy(np.array(content))


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    coming = iter(items)
    while some := list(islice(coming, size)):
        yield some


def _where(items: Sequence[Item], which: ndarray) -> list[Item]:
    return [item for item, chosen in zip(items, which, strict=True) if chosen]


def _label(head: Head, z: Float32[ndarray, "n d"], top: int | None) -> Iterator[Label]:
    """The most probable classes of embeddings, after the mask's map."""
    p = probabilities(head, z)
    for row, order in zip(p.astype(np.float32), most_probable(p, top), strict=True):
        classes = tuple(head.classes[i] for i in order)
        yield Label(classes[0], tuple(map(float, row[order])), classes, len(head.classes))
