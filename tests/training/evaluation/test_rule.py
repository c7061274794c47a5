"""The rule: what is adopted, what is left, and what nobody can tell."""

from __future__ import annotations

import pytest

from smn_core.verdict import ADOPT, CANNOT_TELL, LEAVE_IT
from training.evaluation.paired import EVIDENCE, Change
from training.evaluation.rule import ALL, SEEN, UNSEEN, Changes, Facts, decide

FLIPS = Facts(n_off=10, has_map=False, has_state=False)


def change(z: float) -> Change:
    return Change(0.5, 0.5 + 0.01 * z, 0.01 * z, 0.01, 100)


def changes(evidence: float, seen: float, unseen: float | None) -> Changes:
    parts = {ALL: evidence, SEEN: seen} | ({UNSEEN: unseen} if unseen is not None else {})
    return {EVIDENCE: {name: change(z) for name, z in parts.items()}}


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (changes(2.1, 1.5, 1.5), ADOPT),
        (changes(2.1, 2.1, None), ADOPT),
        (changes(2.1, 2.1, 0.0), ADOPT),
        (changes(1.9, 1.5, 1.5), CANNOT_TELL),
        (changes(0.0, 0.0, 0.0), CANNOT_TELL),
        (changes(3.0, 4.0, -0.5), CANNOT_TELL),
        (changes(3.0, -0.5, 4.0), CANNOT_TELL),
        (changes(3.0, 5.0, -2.1), LEAVE_IT),
        (changes(-2.1, -1.5, -1.5), LEAVE_IT),
        (changes(-2.1, -2.1, None), LEAVE_IT),
    ],
)
def test_signs_decide_beyond_two_standard_errors_and_never_against_one_part(found, answer):
    assert decide(FLIPS, "", found, None) == answer


@pytest.mark.parametrize(
    ("signs", "labels", "answer"),
    [
        (3.0, -2.1, LEAVE_IT),
        (3.0, -1.9, ADOPT),
        (-3.0, 2.1, ADOPT),
        (-3.0, 1.9, LEAVE_IT),
        (0.0, 1.1, ADOPT),
        (0.0, 0.5, CANNOT_TELL),
        (0.0, 0.0, CANNOT_TELL),
        (0.0, -0.1, LEAVE_IT),
    ],
)
def test_labels_decide_where_signs_cannot_and_override_them_beyond_two(signs, labels, answer):
    assert decide(FLIPS, "", changes(signs, signs, signs), change(labels)) == answer


def test_a_collapsed_space_is_left_whatever_else_is_said():
    assert decide(FLIPS, "an embedding is not finite", {}, None) == LEAVE_IT
    assert decide(FLIPS, "the effective rank fell", changes(9, 9, 9), change(9)) == LEAVE_IT


def test_a_mask_of_0_off_without_a_map_is_never_adopted():
    good = changes(5, 5, 5)
    assert decide(Facts(0, has_map=False, has_state=False), "", good, change(5)) == LEAVE_IT
    assert decide(Facts(0, has_map=False, has_state=True), "", good, change(5)) == CANNOT_TELL
    assert decide(Facts(0, has_map=True, has_state=False), "", good, None) == ADOPT


@pytest.mark.parametrize(("over_map", "answer"), [(2.1, ADOPT), (0.0, CANNOT_TELL), (-2.1, LEAVE_IT)])
def test_flips_under_a_map_are_judged_by_what_they_have_over_frozen_and_map(over_map, answer):
    """A map raises the margin of a space that flips have spoiled, too: against the frozen backbone all look good."""
    both = Facts(n_off=10, has_map=True, has_state=False)
    assert decide(both, "", changes(9, 9, 9), None, changes(over_map, over_map, over_map)) == answer
