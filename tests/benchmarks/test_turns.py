"""Variants are timed in turn, and what warms up does not count."""

from __future__ import annotations

from benchmarks.turns import CLOCKS, clock_name, seconds_in_turn


def test_every_turn_runs_all_variants_once_and_the_first_ones_do_not_count():
    ran, now = [], iter(range(100))
    taken = seconds_in_turn(
        {name: lambda name=name: ran.append(name) for name in "ab"}, 3, lambda: next(now), warm_up=2
    )
    assert "".join(ran) == "ab" * 5
    assert {name: list(values) for name, values in taken.items()} == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_the_wait_for_a_device_is_part_of_the_time_of_a_run():
    seen = []
    seconds_in_turn(
        {"a": lambda: seen.append("run")}, 1, lambda: seen.append("clock") or 0.0, 0, lambda: seen.append("wait")
    )
    assert seen == ["wait", "clock", "run", "wait", "clock"]


def test_several_threads_are_timed_by_the_wall_since_processor_time_adds_them_up():
    assert [clock_name(False), clock_name(True), clock_name(False, threads=2)] == ["process", "wall", "wall"]
    assert set(CLOCKS) == {"process", "wall"}
