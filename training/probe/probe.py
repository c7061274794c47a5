"""`smn probe`: embed labelled images through a mask, fit a classifier, write it into the mask's file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.errors import InvalidData
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, with_bits, write_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.offline import OnBatch, say_nothing
from smn_core.verbs.options import as_trained
from training.data import TRAIN, open_split
from training.evaluation.controls import make_all_on
from training.export import copy_pixels
from training.features import embed
from training.metrics import add_metrics
from training.probe.fit import Fitted, fit_head

PROBE = "probe"
"""The key of a mask's `metrics` under which the classifier's scores stand."""


@dataclass(frozen=True)
class Probed:
    """The mask with its classifier, as written, and how the classifier did."""

    mask: TaskMask
    fitted: Fitted
    unreadable: tuple[str, ...]


def probe(
    spec: BackboneSpec,
    data: str,
    mask_file: Path | None,
    out: Path,
    *,
    batch_size: int = 32,
    seed: int = 0,
    on_batch: OnBatch = say_nothing,
) -> Probed:
    """Fit a classifier on the train split of `data`, through a mask or the frozen backbone, and write `out`.

    The classifier acts on embeddings after the mask's map. What the mask had as a classifier is replaced.

    Raises:
        InvalidData: no labels, too few of a class, or no image can be read.
        InvalidMask, WrongBackbone: the mask cannot be read or does not fit.
    """
    images = open_split(data, TRAIN)
    if images.labels is None:
        raise InvalidData(f"{data} has no labels: give a folder for each class, with images in it")
    given = read_mask(mask_file) if mask_file is not None else None
    backbone = load_backbone(as_trained(spec, given, mask_file))
    mask = (
        with_bits(given, backbone)
        if given is not None
        else replace(make_all_on(backbone), preprocess=copy_pixels(backbone))
    )
    engine = Engine(backbone, slots=1)
    if given is not None:
        engine.prepare(given)
    found = embed(engine, given.digest if given is not None else None, images, batch_size, on_batch)
    assert found.labels is not None
    fitted = fit_head(found.z, found.labels, images.classes, seed)
    scores = fitted.as_json() | {"data": Path(data).name}
    made = replace(mask, head=fitted.head, metadata=add_metrics(mask.metadata, PROBE, scores), digest=None)
    return Probed(write_mask(made, out), fitted, found.skipped)
