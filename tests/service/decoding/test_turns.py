"""Turns go round by client, then by request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.turns import Turns


def drain(turns):
    return [turns.pop() for _ in range(len(turns))]


def test_a_client_with_many_images_waits_as_often_as_others():
    turns = Turns()
    for number in range(4):
        turns.push(("many", 1), f"many {number}")
    turns.push(("one", 2), "one")
    assert drain(turns) == ["many 0", "one", "many 1", "many 2", "many 3"]


def test_requests_of_a_client_share_its_turn():
    turns = Turns()
    for number in range(2):
        for request in ("a", "b"):
            turns.push(("x", request), f"{request}{number}")
        turns.push(("y", "c"), f"c{number}")
    assert drain(turns) == ["a0", "c0", "b0", "c1", "a1", "b1"]


def test_who_comes_back_stands_behind_those_who_wait():
    turns = Turns()
    turns.push(("x", 1), "x0")
    turns.push(("y", 2), "y0")
    assert turns.pop() == "x0"
    turns.push(("x", 3), "x1")
    assert drain(turns) == ["y0", "x1"]


def test_a_request_that_is_dropped_leaves_the_others():
    turns = Turns()
    for path in [("x", 1), ("x", 2), ("y", 3)]:
        turns.push(path, path)
        turns.push(path, path)
    turns.drop(("x", 1))
    turns.drop(("y", 3))
    turns.drop(("nobody", 4))
    assert drain(turns) == [("x", 2), ("x", 2)]
    assert not turns
    with pytest.raises(IndexError):
        turns.pop()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))))
def test_nothing_is_lost_and_a_request_keeps_its_order(paths):
    turns = Turns()
    for number, path in enumerate(paths):
        turns.push(path, (path, number))
    taken = drain(turns)
    assert sorted(taken, key=lambda thing: thing[1]) == [(path, number) for number, path in enumerate(paths)]
    for path in set(paths):
        numbers = [number for of, number in taken if of == path]
        assert numbers == sorted(numbers)
