"""The end of `smn adapt`: fit the map, judge what may come out, write the best or what changes nothing, and say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from smn_core.backbone import Backbone
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, write_mask
from smn_core.tensorfile import canonical_json
from smn_core.verdict import ADOPT, CANNOT_TELL, VERDICT
from training.adapt.budget import Budget
from training.adapt.look import Found
from training.adapt.page import Page, format_table, path_of, write_page
from training.adapt.record import Record
from training.adapt.score import Scorer
from training.checkpoints import README
from training.data import Subset, name_data
from training.evaluation.controls import make_all_on
from training.evaluation.labelled import open_few
from training.evaluation.paired import EVIDENCE, NEIGHBOURS
from training.evaluation.rule import ALL
from training.evaluation.verdict import FROZEN_AND_MAP, Verdict, judge, store_verdict
from training.export import copy_pixels
from training.features import sample
from training.maps import MOST_IMAGES, VIEW_SEEDS, fit_map
from training.progress import Tell

MASK, MASK_AND_MAP = "mask", "mask + map"
MAP_PRECISION = "int8"
"""A quarter of float32's bytes."""
MAP_SHARE, JUDGE_SHARE = 0.25, 0.55
"""Of the time that is left after learning; the rest is for pictures and for what takes longer than it was timed."""
PICTURES_SHARE = 0.5
"""Of the time that is left after the verdict."""
FEWEST_PICTURED, MOST_PICTURED = 24, 150
FEWEST_FOR_MAP, FEWEST_JUDGED, MOST_JUDGED = 20, 30, 600
FORWARDS_WITHOUT_MASK, FORWARDS_WITH_MASK = 6, 14
"""Of a judged image, in four crops: the frozen backbone, its map on the half that was seen; and with a mask, the mask
and as many random flips. A mask with a map and the same mask without one share their forwards."""


@dataclass(frozen=True)
class Parts:
    """What the end works with: the images learned from (`seen`) and kept back (`unseen`), runs, time."""

    data: str
    out: Path
    labelled: Path | None
    command: Sequence[str]
    found: Found
    seen: Subset
    unseen: Subset
    record: Record
    scorer: Scorer
    budget: Budget
    tell: Tell
    codec: str = "zstd"


def end(parts: Parts) -> str:
    """Judge, write the file and its folder, and return the answer."""
    tell, engine, folder = parts.tell, parts.scorer.engine, parts.record.folder
    choices = _make_choices(parts)
    verdicts = _judge(parts, choices)
    chosen = choose(verdicts)
    mask = choices[chosen.name]
    comes_out = mask if may_come_out(chosen) else make_all_on(engine.backbone)
    write_mask(store_verdict(_describe(parts, comes_out), chosen), parts.out, parts.codec, engine.backbone)
    page = Page(
        parts.data, parts.out, parts.command, parts.found, len(parts.seen.names), len(parts.unseen.names), parts.record,
        verdicts, chosen, may_come_out(chosen), {name: path_of(folder, name).stat().st_size for name in choices},
    )  # fmt: skip
    write_page(page, engine, mask, sample(parts.unseen, _count_pictured(parts)))
    for line in ["", *format_table(page), "", page.sentence]:
        tell(line)
    tell(f"pictures and all numbers: {folder / README}")
    tell(f"next: {page.next_command}")
    tell(f"verdict: {chosen.answer}")
    return chosen.answer


def write_nothing(backbone: Backbone, answer: str, reason: str, out: Path) -> TaskMask:
    """Write a file that changes nothing, with an answer and its reason inside."""
    told = canonical_json({VERDICT: {"answer": answer, "reason": reason}})
    return write_mask(replace(make_all_on(backbone), preprocess=copy_pixels(backbone), metadata={"metrics": told}), out)


def choose(verdicts: Sequence[Verdict]) -> Verdict:
    """What comes out: of those to adopt, else of those that nobody can tell, the one that keeps most neighbours.

    Frozen + map needs no training: only a mask that beats it comes before it. Without a map a mask can be compared with
    it by neighbours alone, which a mask may win and lose margin for it; so the same flips under a map must beat it too.
    """
    ranked = sorted(verdicts, key=_rank, reverse=True)
    flips_count = all(_beats_map(verdict) for verdict in verdicts if verdict.name == MASK_AND_MAP)
    for answer in (ADOPT, CANNOT_TELL):
        of_answer = [verdict for verdict in ranked if verdict.answer == answer]
        plain = any(verdict.name == FROZEN_AND_MAP for verdict in of_answer)
        if of_answer:
            return next(
                v for v in of_answer if not plain or v.name == FROZEN_AND_MAP or (flips_count and _beats_map(v))
            )
    return ranked[0]


def may_come_out(verdict: Verdict) -> bool:
    """Whether the choice is written to the file. Where nobody can tell, only if the evidence is not against it."""
    if verdict.answer == CANNOT_TELL:
        return verdict.changes[EVIDENCE][ALL].change >= 0
    return verdict.answer == ADOPT


def _rank(verdict: Verdict) -> tuple[bool, float]:
    """Collapsed ones come last; else shared neighbours of strong views count, as in the race."""
    return not verdict.alarm, verdict.changes[NEIGHBOURS][ALL].after if verdict.changes else 0.0


def _beats_map(verdict: Verdict) -> bool:
    return any(control.name == FROZEN_AND_MAP and control.outcome > 0 for control in verdict.controls)


def _count_pictured(parts: Parts) -> int:
    seconds = PICTURES_SHARE * parts.budget.left_s
    return int(min(MOST_PICTURED, max(FEWEST_PICTURED, seconds / (2 * max(parts.scorer.image_s, 1e-6)))))


def _make_choices(parts: Parts) -> dict[str, TaskMask]:
    """Frozen + map, mask, mask + map, each written to the folder; without the masks where no run flipped a weight."""
    engine, best, folder = parts.scorer.engine, parts.record.best, parts.record.folder
    n_maps = 2 if best is not None else 1
    seconds = MAP_SHARE * parts.budget.left_s
    n_images = int(seconds / (n_maps * (1 + len(VIEW_SEEDS)) * max(parts.scorer.image_s, 1e-6)))
    images = sample(parts.seen, min(MOST_IMAGES, max(FEWEST_FOR_MAP, n_images)))
    parts.tell(f"fitting the map on {len(images.names)} images")
    plain = make_all_on(engine.backbone)
    made = {FROZEN_AND_MAP: replace(plain, affine=fit_map(engine, None, images, precision=MAP_PRECISION))}
    if best is not None:
        mask = read_mask(parts.record.path(best), engine.backbone.layout)
        engine.prepare(mask)
        mapped = fit_map(engine, mask.digest, images, precision=MAP_PRECISION)
        engine.release(str(mask.digest))
        made |= {MASK: mask, MASK_AND_MAP: replace(mask, affine=mapped)}
    return {name: write_mask(_describe(parts, mask), path_of(folder, name)) for name, mask in made.items()}


def _describe(parts: Parts, mask: TaskMask) -> TaskMask:
    """With what it was made from, where the mask does not say it yet."""
    pixels, data = copy_pixels(parts.scorer.engine.backbone), name_data(parts.data)
    return replace(mask, preprocess=pixels, metadata={"dataset": data, **mask.metadata}, digest=None)


def _judge(parts: Parts, choices: dict[str, TaskMask]) -> list[Verdict]:
    """Judge on as many images as the time that is left allows, half of them seen by the learning."""
    forwards = FORWARDS_WITH_MASK if MASK in choices else FORWARDS_WITHOUT_MASK
    seconds = JUDGE_SHARE * parts.budget.left_s
    n_judged = int(min(MOST_JUDGED, max(FEWEST_JUDGED, seconds / (forwards * max(parts.scorer.image_s, 1e-6)))))
    unseen = sample(parts.unseen, n_judged // 2)
    seen = sample(parts.seen, n_judged - len(unseen.names))
    parts.tell(f"judging on {len(seen.names)} images that were learned from and {len(unseen.names)} that were not")
    labelled = open_few(parts.labelled) if parts.labelled is not None else None
    return judge(parts.scorer.engine, list(choices.items()), seen, unseen, labelled=labelled)
