"""`smn probe`: embed labelled images through a mask, fit a classifier, write it into the mask's file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, with_bits, write_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained
from smn_core.verbs.stderr import note
from training.data import name_data
from training.evaluation.controls import make_all_on
from training.export import copy_pixels
from training.features import embed
from training.metrics import add_metrics
from training.probe.fit import PROBE, Fitted, fit_head
from training.progress import Bar


@dataclass(frozen=True)
class Probed:
    """The mask with its classifier, as written, and how the classifier did."""

    mask: TaskMask
    fitted: Fitted
    unreadable: tuple[str, ...]


def probe_mask(
    spec: BackboneSpec,
    images: ImageSet,
    mask_file: Path | None,
    out: Path,
    data: str,
    *,
    batch_size: int,
    seed: int,
    bar: Bar,
) -> Probed:
    """Fit a classifier on labelled images, through a mask or the frozen backbone, and write `out`.

    The classifier acts on embeddings after the mask's map. What the mask had as a classifier is replaced.

    Raises:
        InvalidData: too few of a class, or no image can be read.
        InvalidMask, WrongBackbone: the mask cannot be read or does not fit.
    """
    given = read_mask(mask_file) if mask_file is not None else None
    backbone = load_backbone(as_trained(spec, given, mask_file))
    mask = (
        with_bits(given, backbone)
        if given is not None
        else replace(make_all_on(backbone), preprocess=copy_pixels(backbone))
    )
    engine = Engine(backbone, slots=1)
    if given is not None:
        for warning in engine.prepare(given):
            note(f"warning: {mask_file}: {warning}")
    with bar("embedding", len(images.names)) as on_batch:
        found = embed(engine, given.digest if given is not None else None, images, batch_size, on_batch)
    assert found.labels is not None
    fitted = fit_head(found.z, found.labels, images.classes, seed)
    scores = fitted.as_json() | {"data": name_data(data)}
    made = replace(mask, head=fitted.head, metadata=add_metrics(mask.metadata, PROBE, scores), digest=None)
    return Probed(write_mask(made, out), fitted, found.skipped)
