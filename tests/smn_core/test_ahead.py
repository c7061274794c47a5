"""Jobs run ahead in threads and come out in order; no more of them is taken than is needed."""

import itertools
import threading

import pytest

from smn_core.ahead import in_order


@pytest.mark.parametrize(("n_threads", "n_ahead"), [(1, 0), (2, 3), (5, 1)])
def test_everything_comes_once_and_in_order(n_threads, n_ahead):
    assert list(in_order((lambda i=i: i * i for i in range(50)), n_threads, n_ahead)) == [i * i for i in range(50)]


def test_endlessly_many_jobs_are_taken_as_they_are_needed():
    taken = []

    def jobs():
        for i in itertools.count():
            taken.append(i)
            yield lambda i=i: i

    found = in_order(jobs(), 2, 3)
    assert list(itertools.islice(found, 5)) == [0, 1, 2, 3, 4]
    found.close()
    assert len(taken) == 5 + 3


def test_jobs_run_side_by_side():
    """Each waits for the other: one after the other they would never end."""
    meet = threading.Barrier(2, timeout=60)
    assert sorted(in_order([meet.wait, meet.wait], 2, 1)) == [0, 1]


def test_an_error_comes_in_its_turn_and_no_further_job_begins():
    begun = []

    def job(i):
        begun.append(i)
        if i == 2:
            raise ValueError("two")
        return i

    found = in_order((lambda i=i: job(i) for i in range(100)), 1, 1)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(found)
    assert len(begun) <= 4
