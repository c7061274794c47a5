"""The rule that turns the numbers of a mask into an answer: adopt, leave it, or cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smn_core.verdict import ADOPT, CANNOT_TELL, LEAVE_IT
from training.evaluation.paired import EVIDENCE, Change

CERTAIN_Z = 2.0
"""Standard errors beyond which a change counts."""
LABELS_ADOPT_Z = 1.0
"""Where the signs cannot tell, labels adopt above this and refuse below 0."""
ALL, SEEN, UNSEEN = "all", "seen", "unseen"
Changes = Mapping[str, Mapping[str, Change]]
"""Changes by sign, then by `ALL`, `SEEN` and `UNSEEN` images; without unseen images the last is absent."""


@dataclass(frozen=True)
class Facts:
    """What is known of a mask without looking at images."""

    n_off: int
    has_map: bool
    has_state: bool

    @property
    def changes_nothing(self) -> bool:
        return not (self.n_off or self.has_map or self.has_state)

    @property
    def may_be_adopted(self) -> bool:
        """A mask of 0 OFF without a map has learned nothing, whatever its statistics do."""
        return bool(self.n_off or self.has_map)


def decide(facts: Facts, alarm: str, changes: Changes, labelled: Change | None, over_map: Changes | None = None) -> str:
    """The rule. z is a change in standard errors over images.

    1. *leave it* if a space has collapsed (`alarm`), or the mask changes nothing.
    2. The signs: *adopt* if the evidence is beyond z = 2 over all images, and against it on neither the seen nor the
       unseen ones. *leave it* if it is beyond -2 over all, seen or unseen images. Otherwise *cannot tell*. A map raises
       the margin of any space, good or bad, so flips or statistics under a map are judged against frozen + map
       (`over_map`), and without one against the frozen backbone. A map alone is judged against the frozen backbone too.
    3. Labels, where given, override the signs beyond 2 standard errors. Where the signs cannot tell, they adopt above
       1, leave it below 0, and between these nobody can tell.
    4. A mask of 0 OFF without a map is never adopted: *cannot tell* in place of it.
    """
    if alarm or facts.changes_nothing:
        return LEAVE_IT
    answer = decide_by_signs(over_map or changes)
    if labelled is not None:
        answer = decide_by_labels(answer, labelled.z)
    return CANNOT_TELL if answer == ADOPT and not facts.may_be_adopted else answer


def decide_by_signs(changes: Changes) -> str:
    """Part 2 of the rule."""
    evidence = changes[EVIDENCE]
    if min(change.z for change in evidence.values()) < -CERTAIN_Z:
        return LEAVE_IT
    nothing_fell = min(change.change for change in evidence.values()) >= 0
    return ADOPT if evidence[ALL].z > CERTAIN_Z and nothing_fell else CANNOT_TELL


def decide_by_labels(answer: str, z: float) -> str:
    """Part 3 of the rule, from the answer of the signs and the z of the labels."""
    if abs(z) > CERTAIN_Z:
        return ADOPT if z > 0 else LEAVE_IT
    if answer != CANNOT_TELL:
        return answer
    return ADOPT if z > LABELS_ADOPT_Z else LEAVE_IT if z < 0 else CANNOT_TELL
