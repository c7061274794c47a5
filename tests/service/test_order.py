"""Which image goes next: equal shares for those who ask, and for each of them among masks."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from service.order import Order


@dataclass(eq=False)
class Job:
    who: str
    mask: str | None
    cancelled: bool = False


def put(order, who, mask, n, places=()):
    job = Job(who, mask)
    return job, order.put(who, job, n, places)


def taken(order, most, capacity=8):
    return [(job.who, job.mask, row) for _, _, job, row in order.take(most, capacity)]


def test_alone_it_is_first_come_first_served():
    order = Order()
    for number in range(6):
        put(order, "a", f"{number % 2}", 1)
    assert [mask for _, mask, _ in taken(order, 6)] == ["0", "1", "0", "1", "0", "1"]


def test_one_who_floods_waits_for_himself_through_one_mask_or_many():
    for masks in (["m"] * 10, [f"m{i}" for i in range(10)], ["m", None] * 5):
        order = Order()
        for mask in masks:
            put(order, "flood", mask, 64)
        taken(order, 32, 16)
        put(order, "quiet", "m", 4)
        assert Counter(who for who, _, _ in taken(order, 8, 16)) == {"flood": 4, "quiet": 4}
        assert {who for who, _, _ in taken(order, 8, 16)} == {"flood"}


def test_shares_are_equal_however_many_ask():
    order = Order()
    for who, n in (("a", 300), ("b", 100), ("c", 60)):
        for _ in range(n // 20):
            put(order, who, None, 20)
    assert Counter(who for who, _, _ in taken(order, 90)) == {"a": 30, "b": 30, "c": 30}


def test_who_was_away_has_saved_nothing():
    order = Order()
    put(order, "a", None, 100)
    taken(order, 50)
    put(order, "b", None, 50)
    assert Counter(who for who, _, _ in taken(order, 20)) == {"a": 10, "b": 10}


def test_a_line_whose_masks_do_not_fit_leaves_its_turn_to_others():
    order = Order()
    put(order, "a", "1", 1)
    put(order, "b", "2", 2)
    put(order, "a", "1", 3)
    assert taken(order, 8, capacity=1) == [("a", "1", 0), ("a", "1", 0), ("a", "1", 1), ("a", "1", 2)]
    assert len(order) == 2 and taken(order, 8, capacity=1) == [("b", "2", 0), ("b", "2", 1)]


def test_a_second_pass_goes_before_what_came_after_its_first():
    order = Order()
    _, places = put(order, "a", "root", 2)
    put(order, "a", "other", 3)
    assert [mask for _, mask, _ in taken(order, 3)] == ["root", "other", "root"]
    put(order, "a", "expert", 2, places)
    assert [mask for _, mask, _ in taken(order, 2)] == ["expert", "expert"]


def test_a_second_pass_keeps_its_place_after_all_that_waited_with_its_first_was_taken():
    order = Order()
    put(order, "a", "root", 100)
    assert len(taken(order, 100)) == 100
    _, places = put(order, "a", "root", 2)
    taken(order, 2)
    put(order, "a", "other", 50)
    put(order, "a", "expert", 2, places)
    assert [mask for _, mask, _ in taken(order, 2)] == ["expert", "expert"]


def test_what_was_cancelled_takes_no_place_and_nobody_else_s_turn():
    order = Order()
    job, _ = put(order, "a", "1", 5)
    put(order, "b", "2", 3)
    job.cancelled = True
    assert taken(order, 3, capacity=1) == [("b", "2", 0), ("b", "2", 1), ("b", "2", 2)]
    assert len(order) == 0


WORK = st.tuples(st.sampled_from("abc"), st.sampled_from(["1", "2", "3", None]), st.integers(1, 9))


@given(st.lists(st.one_of(WORK, st.integers(1, 8)), max_size=40), st.integers(1, 3))
def test_every_row_comes_once_in_the_order_of_its_job(steps, capacity):
    order, wanted, found = Order(), Counter(), []
    for step in [*steps, *[8] * 50]:
        if isinstance(step, int):
            rows = order.take(step, capacity)
            assert len(rows) <= step and len({job.mask for _, _, job, _ in rows} - {None}) <= capacity
            found += [(job, row) for _, _, job, row in rows]
        else:
            job, _ = put(order, *step)
            wanted[job] = step[2]
    assert len(order) == 0 and list(order.rows()) == []
    assert Counter(job for job, _ in found) == wanted
    for job in wanted:
        assert [row for other, row in found if other is job] == list(range(wanted[job]))
