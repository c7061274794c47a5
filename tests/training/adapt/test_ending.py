"""What comes out of several verdicts."""

from __future__ import annotations

import pytest

from smn_core.verdict import ADOPT, CANNOT_TELL, LEAVE_IT
from training.adapt.ending import MASK, MASK_AND_MAP, choose, may_come_out
from training.evaluation.paired import AGREEMENT, EVIDENCE, MARGIN, NEIGHBOURS, Change
from training.evaluation.rule import ALL, Facts
from training.evaluation.verdict import FROZEN_AND_MAP, Control, Verdict


def by(change: float, error: float = 0.01) -> dict[str, Change]:
    return {ALL: Change(0.5, 0.5 + change, change, error, 100)}


def judged(name: str, answer: str, neighbours: float, evidence: float = 0.05, over_map: float = 0.05) -> Verdict:
    """A verdict by what changed, and by what it has over frozen + map; errors are .01, so z is a hundred times that."""
    changes = {AGREEMENT: by(evidence), MARGIN: by(evidence), NEIGHBOURS: by(neighbours), EVIDENCE: by(evidence)}
    control = Control(FROZEN_AND_MAP, "", changes, {EVIDENCE: by(over_map)})
    return Verdict(name, answer, "", Facts(5, False, False), 50, 50, 0, 0, "", 9.0, 9.0, changes, (control,))


@pytest.mark.parametrize(
    ("verdicts", "chosen"),
    [
        ([judged("a", ADOPT, 0.1), judged("b", ADOPT, 0.2)], "b"),
        ([judged("a", ADOPT, 0.1), judged("b", CANNOT_TELL, 0.2)], "a"),
        ([judged("a", LEAVE_IT, 0.3), judged("b", CANNOT_TELL, 0.2)], "b"),
        ([judged("a", LEAVE_IT, 0.3), judged("b", LEAVE_IT, 0.2)], "a"),
        ([judged(FROZEN_AND_MAP, ADOPT, 0.1), judged("b", ADOPT, 0.2)], "b"),
        ([judged(FROZEN_AND_MAP, ADOPT, 0.1), judged("b", ADOPT, 0.2, over_map=0.015)], FROZEN_AND_MAP),
        ([judged(FROZEN_AND_MAP, ADOPT, 0.1), judged("b", ADOPT, 0.2, over_map=-0.05)], FROZEN_AND_MAP),
        ([judged(FROZEN_AND_MAP, LEAVE_IT, 0.1), judged("b", ADOPT, 0.2, over_map=-0.05)], "b"),
    ],
)
def test_the_best_answer_counts_first_then_shared_neighbours_and_a_mask_beats_frozen_and_map(verdicts, chosen):
    assert choose(verdicts).name == chosen


@pytest.mark.parametrize(("under_map", "chosen"), [(0.05, MASK), (0.01, FROZEN_AND_MAP), (-0.05, FROZEN_AND_MAP)])
def test_a_mask_without_a_map_beats_frozen_and_map_only_where_its_flips_do_under_a_map(under_map, chosen):
    plain, mask = judged(FROZEN_AND_MAP, ADOPT, 0.1), judged(MASK, ADOPT, 0.2)
    mapped = judged(MASK_AND_MAP, CANNOT_TELL, 0.15, over_map=under_map)
    assert choose([plain, mask, mapped]).name == chosen


@pytest.mark.parametrize(
    ("verdict", "comes_out"),
    [
        (judged("a", ADOPT, 0.1), True),
        (judged("a", LEAVE_IT, 0.1), False),
        (judged("a", CANNOT_TELL, 0.1), True),
        (judged("a", CANNOT_TELL, 0.1, evidence=-0.01), False),
        (judged("a", CANNOT_TELL, -0.1, evidence=0.0), True),
    ],
)
def test_what_nobody_can_tell_comes_out_only_if_the_evidence_is_not_against_it(verdict, comes_out):
    assert may_come_out(verdict) is comes_out
