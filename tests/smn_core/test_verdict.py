"""The verdict that a mask's file carries: read where it is one, any other text is borne."""

import json

import pytest

from smn_core.maskfile import check_fits
from smn_core.verdict import MOST_CHARACTERS, read_verdict, warn_of_verdict


def told(answer: object, reason: object = "Because.") -> dict[str, str]:
    return {"metrics": json.dumps({"loss_after": 3.0, "verdict": {"answer": answer, "reason": reason}})}


@pytest.mark.parametrize("answer", ["adopt", "leave it", "cannot tell"])
def test_an_answer_is_read_with_its_reason(answer):
    assert read_verdict(told(answer)) == {"answer": answer, "reason": "Because."}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        *({"metrics": text} for text in ("", "fast", "[]", "3", '"verdict"', "[" * 100_000, "{}")),
        *({"metrics": json.dumps({"verdict": value})} for value in (None, "leave it", 3, [], {}, {"answer": 3})),
        told("maybe"),
        told("leave it", ["not", "text"]),
        told(["leave it"]),
        told("leave it", "no \ud800 use"),
    ],
)
def test_any_other_text_carries_no_verdict(metadata):
    assert read_verdict(metadata) is None
    assert warn_of_verdict(metadata) == []


def test_a_reason_may_have_any_letter_and_stand_beside_numbers_that_are_not_finite():
    metrics = json.dumps({"loss": float("nan"), "verdict": {"answer": "leave it", "reason": "no \U0001f600 use"}})
    assert read_verdict({"metrics": metrics}) == {"answer": "leave it", "reason": "no \U0001f600 use"}


def test_only_a_mask_that_should_be_left_warns_in_one_line_that_is_not_long():
    assert warn_of_verdict(told("adopt")) == warn_of_verdict(told("cannot tell")) == []
    (warning,) = warn_of_verdict(told("leave it", "It\nharms. " * 200))
    assert warning.startswith("verdict: leave it. It harms.")
    assert "\n" not in warning
    assert len(warning) <= MOST_CHARACTERS + 30


def test_who_checks_that_a_mask_fits_hears_the_warning(make_backbone, make_mask):
    backbone = make_backbone("test_vit")
    assert check_fits(make_mask(backbone, metadata=told("adopt")), backbone) == []
    assert check_fits(make_mask(backbone, metadata=told("leave it")), backbone) == ["verdict: leave it. Because."]
