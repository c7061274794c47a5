"""Admission: a bound on what is in work, shared by those who ask."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import Admission, Claim, QueueFull


def test_it_counts_and_gives_places_back():
    admission = Admission(5)
    with admission.admit(3), admission.admit(2):
        assert admission.admitted == 5
        with pytest.raises(QueueFull), admission.admit(1):
            pass
        with pytest.raises(QueueFull):
            admission.admit(10).__enter__()
    assert admission.admitted == 0


def test_who_is_alone_may_take_all_and_no_more():
    admission = Admission(10)
    admission.take("a", 10)
    with pytest.raises(QueueFull):
        admission.take("a", 1)


def test_who_asks_for_no_more_than_a_share_is_admitted_although_another_has_taken_all():
    admission = Admission(10)
    admission.take("flood", 10)
    admission.take("quiet", 3)
    admission.take("quiet", 2)
    with pytest.raises(QueueFull):
        admission.take("quiet", 1)  # half of it is the share of two
    with pytest.raises(QueueFull):
        admission.take("flood", 1)
    admission.give("flood", 6)
    admission.take("quiet", 1)  # nobody is kept from what is free
    assert admission.admitted == 10


def test_all_together_never_hold_more_than_twice_the_limit():
    admission = Admission(64)
    for number in range(1000):
        try:
            admission.take(f"{number}", max(1, 64 // (number + 1)))
        except QueueFull:
            break
    assert 64 < admission.admitted <= 128


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.booleans()), max_size=60))
def test_what_was_taken_and_given_back_adds_up(steps):
    admission, held = Admission(20), dict.fromkeys("abc", 0)
    for who, n, gives in steps:
        if gives:
            admission.give(who, held[who]) if held[who] else None
            held[who] = 0
            continue
        active = sum(1 for other in held if held[other] or other == who)
        try:
            admission.take(who, n)
        except QueueFull:
            assert sum(held.values()) + n > 20
            assert held[who] + n > 20 // active
        else:
            held[who] += n
        assert admission.admitted == sum(held.values()) <= 40


def test_a_claim_grows_and_is_given_back_as_a_whole():
    budget = Admission(100, "bytes")
    claim = Claim(budget)
    for size in (10, 60, 60, 20):
        claim.reach(size, "a")
    assert budget.admitted == 60
    with pytest.raises(QueueFull, match="60 bytes are in work, at most 100"):
        claim.reach(101, "a")
    claim.release()
    claim.release()
    assert budget.admitted == 0
