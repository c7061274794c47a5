"""`smn verdict`: open what is judged, judge it, print it, and write it into a file where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np

from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.files import require_writable
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, require_mask_name, with_bits, write_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs import show, stderr
from smn_core.verbs.options import as_trained
from training.copies import count_distinct
from training.data import TRAIN, Subset, has_split, name_data, open_split, others_among
from training.evaluation.labelled import open_few
from training.evaluation.spaces import FEWEST_IMAGES, MOST_IMAGES
from training.evaluation.tables import print_verdicts
from training.evaluation.verdict import count_embeddings, judge, store_verdict
from training.features import sample
from training.unseen import find_unseen

UNSEEN_SPLITS = ("test", "val")
UNSEEN_SHARE, CUT_SEED = 1 / 3, 0
ALL_SEEN = (
    "warning: the data have no test split, and a mask's run may have seen all of these images: it is judged on images"
    " that it was learned on (unseen: none)"
)


def run(
    spec: BackboneSpec,
    files: Sequence[Path],
    data: str,
    *,
    labelled: Path | None,
    foreign: Path | None,
    out: Path | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Judge mask files on a set of images and print the verdicts; with `out` write the one mask with its verdict.

    Raises:
        InvalidArgument: `out` with several files, or it cannot be written.
        InvalidData, InvalidMask, WrongBackbone: as `judge`, or a file or set that cannot be read.
    """
    if out is not None and len(files) != 1:
        raise InvalidArgument(f"--out writes one mask, and {len(files)} are judged: give one FILE")
    if out is not None:
        require_mask_name(out)
        require_writable(out)
    masks = [(path.name, read_mask(path)) for path in files]
    other = read_mask(foreign) if foreign is not None else None
    few = open_few(labelled) if labelled is not None else None
    seen, unseen = open_seen_and_unseen(data, [mask for _, mask in masks], files)
    stderr.count_others(others_among(seen))
    if unseen is None:
        stderr.note(ALL_SEEN)
    require_difference(data, seen, unseen)
    engine = Engine(load_backbone(as_trained(spec, masks[0][1], files[0])), slots=1)
    masks = [(name, with_bits(mask, engine.backbone)) for name, mask in masks]
    other = with_bits(other, engine.backbone) if other is not None else None
    total = count_embeddings(masks, seen, unseen, foreign=other, labelled=few)
    with show.images_progress(total) as on_batch:
        verdicts = judge(
            engine, masks, seen, unseen, foreign=other, labelled=few, batch_size=batch_size, on_batch=on_batch
        )
    if out is not None:
        write_mask(store_verdict(masks[0][1], verdicts[0]), out)
    if as_json:
        show.as_json({"data": name_data(data), "verdicts": [verdict.as_json() for verdict in verdicts]})
    else:
        print_verdicts(verdicts)


def require_difference(data: str, seen: ImageSet, unseen: ImageSet | None) -> None:
    """Refuse images that are near-copies of each other, of those that a verdict looks at.

    Raises:
        InvalidData: fewer than `FEWEST_IMAGES` of them differ.
    """
    sets = [sample(images, MOST_IMAGES) for images in (seen, unseen) if images is not None]
    n_distinct, n_read = count_distinct(sets, FEWEST_IMAGES)
    if n_distinct < FEWEST_IMAGES <= n_read:
        alike = (
            "all images are alike" if n_distinct == 1 else f"only {n_distinct} images differ, the rest are near-copies"
        )
        raise InvalidData(f"{data}: {alike}: a verdict takes {FEWEST_IMAGES} different images at least; add others")


def open_seen_and_unseen(
    data: str, masks: Sequence[TaskMask], files: Sequence[Path] = ()
) -> tuple[ImageSet, ImageSet | None]:
    """The images that the masks' runs learned from, and images that none of them saw, or None.

    The latter are the test split (or `val`). Without one, they are those that the runs of all masks kept back, as
    `smn adapt` does. Without such a note, they are a third of the images where all masks name another data set than
    this one; a mask that names this one, or none, may have seen everything.

    Args:
        files: where the masks lie; their runs' folders are beside them.

    Raises:
        InvalidData: as `open_split`.
    """
    for split in UNSEEN_SPLITS:
        if has_split(data, split):
            return open_split(data, TRAIN), open_split(data, split)
    images = open_split(data, TRAIN)
    noted = [find_unseen(file, images) for file in files]
    kept_back = [found for found in noted if found is not None]
    if kept_back and len(kept_back) == len(noted):
        unseen = np.array(reduce(np.intersect1d, kept_back))
        if len(unseen):
            rest = np.setdiff1d(np.arange(len(images.names)), unseen)
            return Subset(images, rest), Subset(images, unseen)
    named = [mask.metadata.get("dataset", "") for mask in masks]
    if any(name in ("", name_data(data)) for name in named):
        return images, None
    order = np.random.default_rng(CUT_SEED).permutation(len(images.names))
    n_unseen = round(UNSEEN_SHARE * len(order))
    return Subset(images, np.sort(order[n_unseen:])), Subset(images, np.sort(order[:n_unseen]))
