"""Whether a mask is worth having: judged without labels against honest controls, and by a few labels where given.

The frozen backbone and the mask see the same crops of the same images, seen and unseen by the mask's run alike. What is
compared is in paired.py, the controls are in controls.py, and the rule is in rule.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from smn_core.engine import Engine
from smn_core.errors import InvalidData
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import check_fits
from smn_core.verbs.offline import OnBatch, say_nothing
from smn_core.verdict import CANNOT_TELL, VERDICT
from training.evaluation.controls import flip_at_random, make_all_on
from training.evaluation.labelled import BOTH, require_labels
from training.evaluation.paired import EVIDENCE, MARGIN, NEIGHBOURS, Change, Measured, find_collapse
from training.evaluation.rule import ALL, CERTAIN_Z, Changes, Facts, decide
from training.evaluation.spaces import MOST_IMAGES, N_VIEWS, Spaces
from training.maps import WITHIN, fit_map, n_embeddings
from training.metrics import add_metrics

FROZEN_AND_MAP, RANDOM_FLIPS, FOREIGN = "frozen + map", "random flips", "foreign mask"


@dataclass(frozen=True)
class Control:
    """A control beside the mask: its own change against the frozen backbone, and what the mask has over it.

    `sign` is the one by which the two are compared.
    """

    name: str
    broken: str
    changes: Changes
    beaten_by: Changes
    sign: str = EVIDENCE

    @property
    def outcome(self) -> int:
        """1: the mask beats it, -1: it beats the mask, 0: neither beyond two standard errors of `sign`."""
        if self.broken:
            return 1
        if not self.beaten_by:
            return 0
        z = self.beaten_by[self.sign][ALL].z
        return int(z > CERTAIN_Z) - int(z < -CERTAIN_Z)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "sign": self.sign,
            "beaten": {1: "yes", 0: "cannot tell", -1: "no"}[self.outcome],
            "broken": self.broken,
            "changes": changes_as_json(self.changes),
            "mask_minus_control": changes_as_json(self.beaten_by),
        }


@dataclass(frozen=True)
class Verdict:
    """The judgement of one mask. Numbers of images: seen and unseen ones that were judged, labelled, unreadable."""

    name: str
    answer: str
    reason: str
    facts: Facts
    n_seen: int
    n_unseen: int
    n_labelled: int
    n_unreadable: int
    alarm: str
    frozen_rank: float
    rank: float
    changes: Changes = field(default_factory=dict)
    controls: tuple[Control, ...] = ()
    labels: Mapping[str, Change] = field(default_factory=dict)

    @property
    def over_map(self) -> Changes | None:
        """What flips or statistics under a map have over frozen + map; None without them, a map, or if collapsed."""
        plain = next((control for control in self.controls if control.name == FROZEN_AND_MAP), None)
        return (plain.beaten_by or None) if plain is not None and self.facts.has_map else None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "answer": self.answer,
            "reason": self.reason,
            "off": self.facts.n_off,
            "map": self.facts.has_map,
            "images": {
                "seen": self.n_seen,
                "unseen": self.n_unseen,
                "labelled": self.n_labelled,
                "unreadable": self.n_unreadable,
            },
            "alarm": self.alarm,
            "effective_rank": {"frozen": round(self.frozen_rank, 3), "mask": round(self.rank, 3)},
            "changes": changes_as_json(self.changes),
            "controls": [control.as_json() for control in self.controls],
            "labels": {name: change.as_json() for name, change in self.labels.items()},
        }


def changes_as_json(changes: Changes) -> dict[str, Any]:
    return {sign: {part: change.as_json() for part, change in by.items()} for sign, by in changes.items()}


def count_embeddings(
    masks: Sequence[tuple[str, TaskMask]],
    seen: ImageSet,
    unseen: ImageSet | None,
    *,
    foreign: TaskMask | None = None,
    labelled: ImageSet | None = None,
) -> int:
    """How many images `judge` embeds, at most: what a progress bar counts to."""
    pooled = sum(min(len(images.names), MOST_IMAGES) for images in (seen, unseen) if images is not None)
    few = len(labelled.names) if labelled is not None else 0
    n_judged = 1 + len(masks) + (foreign is not None)
    n_flipped = sum(1 for _, mask in masks if mask.n_off)
    return n_embeddings(seen, WITHIN) + N_VIEWS * pooled * (n_judged + n_flipped) + few * n_judged


def judge(
    engine: Engine,
    masks: Sequence[tuple[str, TaskMask]],
    seen: ImageSet,
    unseen: ImageSet | None,
    *,
    foreign: TaskMask | None = None,
    labelled: ImageSet | None = None,
    batch_size: int = 32,
    seed: int = 0,
    on_batch: OnBatch = say_nothing,
) -> list[Verdict]:
    """Judge masks, given with their names, against the frozen backbone and the controls; one verdict for each.

    Up to `MOST_IMAGES` of the seen and of the unseen images are looked at, always the same ones. Unreadable ones are
    passed over and counted. The engine is left as it was found; masks need not be prepared, nor have a digest.

    Args:
        seen: images that the masks' runs learned from.
        unseen: images that they did not see, or None.
        foreign: a mask that was learned on other images: one more control.
        labelled: class folders with a few images each, ten are enough.
        seed: of the crops and of the random flips.

    Raises:
        InvalidData: fewer than `FEWEST_IMAGES` readable images together, images that are all alike to the backbone, or
            labels that are too few.
        WrongBackbone: a mask was made for another backbone.
    """
    if labelled is not None:
        require_labels(labelled.labels, labelled.classes)
    flipped = {n: flip_at_random(mask, seed) for n, (_, mask) in enumerate(masks) if mask.n_off > 0}
    judged = [mask for _, mask in masks] + ([foreign] if foreign is not None else [])
    for mask in judged:
        check_fits(mask, engine.backbone)
    with Spaces(engine, judged, list(flipped.values())) as spaces:
        spaces.look(seen, unseen, batch_size, seed, on_batch)
        if labelled is not None:
            spaces.look_at_labelled(labelled, batch_size, on_batch)
        frozen = spaces.measure(None)
        if frozen.broken:
            raise InvalidData(f"there is nothing to judge by: to the frozen backbone, {frozen.broken}")
        controls = {FROZEN_AND_MAP: make_all_on(engine.backbone, fit_map(engine, None, seen, on_batch=on_batch))}
        if foreign is not None:
            controls[FOREIGN] = foreign
        shared = {name: spaces.measure(control) for name, control in controls.items()}
        return [_judge_one(spaces, name, mask, frozen, shared, flipped.get(n)) for n, (name, mask) in enumerate(masks)]


def _judge_one(
    spaces: Spaces,
    name: str,
    mask: TaskMask,
    frozen: Measured,
    shared: Mapping[str, Measured],
    flipped: TaskMask | None,
) -> Verdict:
    mine = spaces.measure(mask)
    facts = Facts(mask.n_off, mask.affine is not None, bool(mask.state))
    alarm = find_collapse(frozen, mine)
    changes = spaces.compare(frozen, mine)
    controls = []
    if mask.n_off > 0 or mask.state:
        # Under a map margins rise in any space, so a mask without one is compared with frozen + map by neighbours.
        sign = {FROZEN_AND_MAP: EVIDENCE if facts.has_map else NEIGHBOURS}
        controls = [
            _control(spaces, label, frozen, mine, other, sign.get(label, EVIDENCE)) for label, other in shared.items()
        ]
    if flipped is not None:
        # A map would hide what the places of the flips do: flips are compared without it.
        bare = spaces.measure(replace(mask, affine=None))
        controls.append(_control(spaces, RANDOM_FLIPS, frozen, bare, spaces.measure(flipped)))
    labels = {} if alarm else spaces.compare_labels(mask)
    found = Verdict(
        name=name,
        answer="",
        reason="",
        facts=facts,
        n_seen=spaces.n_seen,
        n_unseen=spaces.n_unseen,
        n_labelled=labels[BOTH].n if labels else 0,
        n_unreadable=spaces.n_unreadable,
        alarm=alarm,
        frozen_rank=frozen.rank,
        rank=mine.rank,
        changes=changes,
        controls=tuple(controls),
        labels=labels,
    )
    found = replace(found, answer=decide(facts, alarm, changes, labels.get(BOTH), found.over_map))
    return replace(found, reason=explain(found))


def _control(
    spaces: Spaces, name: str, frozen: Measured, mine: Measured, other: Measured, sign: str = EVIDENCE
) -> Control:
    changes, beaten_by = spaces.compare(frozen, other), spaces.compare(other, mine)
    return Control(name, find_collapse(frozen, other), changes, beaten_by, sign)


def explain(verdict: Verdict) -> str:
    """The reason of an answer, one sentence."""
    facts = verdict.facts
    if facts.changes_nothing:
        return "It switches nothing off and has no map, so it is the frozen backbone itself."
    if verdict.alarm:
        return f"It has collapsed: {verdict.alarm}."
    neighbours, margin = verdict.changes[NEIGHBOURS][ALL], verdict.changes[MARGIN][ALL]
    unseen = f"{verdict.n_unseen} unseen" if verdict.n_unseen else "unseen: none"
    text = (
        f"Two strong views of an image share {neighbours.after:.3f} of their neighbours, {neighbours.before:.3f} "
        f"without it (z {neighbours.z:+.1f}; margin z {margin.z:+.1f}; {verdict.n_seen} images seen, {unseen})"
    )
    if BOTH in verdict.labels:
        found = verdict.labels[BOTH]
        text += f", and {found.n} labels give {found.before:.3f} and {found.after:.3f} (z {found.z:+.1f})"
    if verdict.answer == CANNOT_TELL:
        more = "more labelled images" if verdict.labels else "ten labelled images a class (--labelled DIR)"
        text += (
            f", so {more} must decide" if facts.may_be_adopted else ", but it switches nothing off and it has no map"
        )
    for control in verdict.controls:
        text += f"; {_compare_with(control)}"
    if facts.n_off == 0 and facts.has_map:
        text += f"; it is {'statistics and a map' if facts.has_state else 'a map alone'}, without flips"
    return f"{text}."


def _compare_with(control: Control) -> str:
    what = {
        FROZEN_AND_MAP: "frozen + map, which needs no training",
        RANDOM_FLIPS: "as many random flips",
        FOREIGN: "the foreign mask",
    }[control.name]
    if control.broken:
        return f"{what} collapse where it does not"
    z = control.beaten_by[control.sign][ALL].z if control.beaten_by else 0.0
    return {
        1: f"it beats {what} (z {z:+.1f})",
        0: f"it cannot be told from {what} (z {z:+.1f})",
        -1: f"it is beaten by {what} (z {z:+.1f})",
    }[control.outcome]


def store_verdict(mask: TaskMask, verdict: Verdict) -> TaskMask:
    """The mask with the verdict in its `metrics`, beside what is there; free text is kept as `text`."""
    return replace(mask, metadata=add_metrics(mask.metadata, VERDICT, verdict.as_json()), digest=None)
