"""`smn translate`: embed a sample in two spaces, fit the map from one to the other, measure it, write it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument
from smn_core.files import replacing, require_writable
from smn_core.maskfile import read_mask
from smn_core.spaces import space_of_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.offline import OnBatch
from smn_core.verbs.options import as_trained
from smn_core.verbs.stderr import count_others, note
from training.data import TRAIN, Subset, has_split, open_split, others_among
from training.features import embed_each
from training.progress import Bar, count_silently
from training.translate.ridge import LinearMap, Translation, require_enough, translate

ROOT = "root"
HELD_OUT, CUT_SEED = 0.3, 0
TEST = "test"


@dataclass(frozen=True)
class Translated:
    """What was fitted, between which spaces, and which images could not be read.

    `others` count the files of kinds that are not read, by suffix.
    """

    found: Translation
    before: str
    after: str
    unreadable: tuple[str, ...]
    others: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        found = self.found
        return {
            "from": self.before,
            "to": self.after,
            "images": {"fitted": found.n_fitted, "held_out": found.n_held_out},
            "strength": found.strength,
            "recall_at_10": {"translated": round(found.recall, 4), "untouched": round(found.recall_untouched, 4)},
            "other_files": self.others,
        }


@dataclass(frozen=True)
class Pair:
    """Two spaces by their ids, and a function that embeds images in both.

    `look(images, on_batch)` gives a row in each space for every image that can be read, and why the others cannot.
    """

    before: str
    after: str
    look: Callable[[Subset, OnBatch], tuple[ndarray, ndarray, Sequence[str]]]


def pair_of_files(spec: BackboneSpec, before: str, after: str, batch_size: int = 32) -> Pair:
    """The spaces of two mask files, or of `root`, embedded in this process.

    Raises:
        InvalidMask, WrongBackbone: a mask cannot be read or does not fit.
    """
    masks = [None if name == ROOT else read_mask(Path(name)) for name in (before, after)]
    file, first = next(((Path(n), m) for n, m in zip((before, after), masks, strict=True) if m), (None, None))
    backbone = load_backbone(as_trained(spec, first, file))
    space_before, space_after = (space_of_mask(backbone, mask) for mask in masks)
    engine = Engine(backbone, slots=2)
    for name, mask in zip((before, after), masks, strict=True):
        for warning in engine.prepare(mask) if mask is not None else ():
            note(f"warning: {name}: {warning}")
    digests = [mask.digest if mask is not None else None for mask in masks]

    def look(images: Subset, on_batch: OnBatch) -> tuple[ndarray, ndarray, Sequence[str]]:
        old, new = embed_each(engine, digests, images, batch_size, on_batch)
        return old.z, new.z, old.skipped

    return Pair(space_before, space_after, look)


def run(pair: Pair, data: str, out: Path, *, bar: Bar = count_silently) -> Translated:
    """Fit the map on a sample and write it to `out`.

    Recall is measured on the test split, or without one on 30 % of the images; the map is not fitted on them.

    Raises:
        InvalidArgument: both are the same space, or `out` cannot be written.
        InvalidData: too few images.
    """
    if pair.before == pair.after:
        raise InvalidArgument(f"--from and --to are one space, {pair.before}: nothing needs moving")
    require_writable(out)
    fitted, held = _cut(data)
    require_enough(len(fitted.names), len(held.names), "images")
    others = Counter(others_among(fitted))
    if held.source is not fitted.source:
        others += Counter(others_among(held))
    count_others(others)
    with bar("embeddings", 2 * (len(fitted.names) + len(held.names))) as on_batch:
        old, new, unread = pair.look(fitted, on_batch)
        held_old, held_new, unread_held = pair.look(held, on_batch)
    found = translate(old, new, held_old, held_new)
    write_map(out, found.map, pair.before, pair.after)
    return Translated(found, pair.before, pair.after, (*unread, *unread_held), dict(others))


def _cut(data: str) -> tuple[Subset, Subset]:
    """The images that the map is fitted on, and those that it is measured on."""
    images = open_split(data, TRAIN)
    if has_split(data, TEST):
        test = open_split(data, TEST)
        return Subset(images, np.arange(len(images.names))), Subset(test, np.arange(len(test.names)))
    order = np.random.default_rng(CUT_SEED).permutation(len(images.names))
    n_held = round(HELD_OUT * len(order))
    return Subset(images, np.sort(order[n_held:])), Subset(images, np.sort(order[:n_held]))


def write_map(out: Path, found: LinearMap, before: str, after: str) -> None:
    """Write `matrix, mean_from, mean_to` (float32) and the ids of the spaces, `from` and `to`."""
    with replacing(out) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {"matrix": found.matrix, "mean_from": found.mean_from, "mean_to": found.mean_to}
        np.savez(file, **(arrays | {"from": np.array(before), "to": np.array(after)}))
