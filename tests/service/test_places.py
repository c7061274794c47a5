"""Several jobs of one request in one batch, and a second pass that is as old as its first."""

import asyncio

import numpy as np
import pytest
from test_batcher import NotingEngine, hold, rows, start, until

from service.batcher import Batcher, EngineFailed, together


@pytest.fixture
def engine():
    return NotingEngine()


@pytest.fixture
def run(engine):
    """`run(scenario, batch_size=...)`: `await scenario(batcher)` on a loop of its own."""

    def ran(scenario, batch_size=8):
        async def main():
            batcher = Batcher(engine, batch_size)
            try:
                return await asyncio.wait_for(scenario(batcher), 20)
            finally:
                engine.gate.set()
                batcher.stop()

        return asyncio.run(main())

    return ran


def test_jobs_that_come_together_go_together(engine, run):
    async def scenario(batcher):
        found = await batcher.embed_all([(str(i), rows(7, 8), ()) for i in range(3)])
        assert [timing.embeddings.tolist() for timing in found] == [[[7, i], [8, i]] for i in range(3)]

    run(scenario)
    assert engine.batches == [[("0", 2), ("1", 2), ("2", 2)]]


def test_together_they_count_each_batch_once(run):
    async def scenario(batcher):
        found = together(await batcher.embed_all([(str(i), rows(7, 8), ()) for i in range(3)]))
        assert found.forward_s == pytest.approx(0.002) and found.swap_s == pytest.approx(0.001)
        assert found.embeddings[:, 1].tolist() == [0, 0, 1, 1, 2, 2]

    run(scenario)


def test_a_second_pass_goes_before_what_came_after_its_first(engine, run):
    async def scenario(batcher):
        first = await batcher.embed("0", rows(1, 2))
        held = await hold(batcher, engine)
        later = [start(batcher, str(mask), *range(4)) for mask in (1, 2, 1)]
        await until(lambda: batcher.waiting == 12)
        second = asyncio.create_task(
            batcher.embed_all([("1", rows(5), first.places[1:]), ("3", rows(6), first.places[:1])])
        )
        await until(lambda: batcher.waiting == 14)
        engine.gate.set()
        found = await second
        await asyncio.gather(held, *later)
        assert [timing.embeddings.tolist() for timing in found] == [[[5, 1]], [[6, 3]]]
        assert found[0].places == first.places[1:]

    run(scenario, batch_size=2)
    assert sorted(engine.batches[2]) == [("1", 1), ("3", 1)]


def test_a_second_pass_does_not_push_its_mask_back(engine, run):
    """Its rows have places already: the next ordinary job of the mask is no later for them."""

    async def scenario(batcher):
        first = await batcher.embed("0", rows(*range(6)))
        held = await hold(batcher, engine)
        second = asyncio.create_task(batcher.embed_all([("1", rows(*range(6)), first.places)]))
        await until(lambda: batcher.waiting == 6)
        tasks = [start(batcher, "1", 9), start(batcher, "2", 9)]
        await until(lambda: batcher.waiting == 8)
        engine.gate.set()
        await asyncio.gather(held, second, *tasks)

    run(scenario, batch_size=8)
    assert dict(engine.batches[2]) == {"1": 7, "2": 1}


def test_one_failing_forward_ends_all_jobs_of_the_request(engine, run):
    async def scenario(batcher):
        held = await hold(batcher, engine)
        lost = asyncio.create_task(batcher.embed_all([(str(i), rows(*range(4)), ()) for i in range(3)]))
        await until(lambda: batcher.waiting == 12)
        engine.raising, engine.raising_times = RuntimeError("no memory"), 2  # the held batch, and the first of the lost
        engine.gate.set()
        await asyncio.gather(held, return_exceptions=True)
        with pytest.raises(EngineFailed):
            await lost
        assert (await batcher.embed("5", rows(1))).embeddings.tolist() == [[1, 5]]

    run(scenario, batch_size=4)


def test_hanging_up_drops_all_jobs_of_the_request(engine, run):
    async def scenario(batcher):
        held = await hold(batcher, engine)
        gone = asyncio.create_task(batcher.embed_all([(str(i), rows(*range(4)), ()) for i in range(3)]))
        await until(lambda: batcher.waiting == 12)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        engine.gate.set()
        await held
        await batcher.embed("5", rows(1))
        assert batcher.waiting == 0

    run(scenario)
    assert engine.batches == [[("99", 1)], [("5", 1)]]


def test_places_are_of_every_row_in_order(run):
    async def scenario(batcher):
        timing = await batcher.embed("1", rows(*range(20)))
        assert len(timing.places) == 20 and list(timing.places) == sorted(timing.places)
        assert np.isfinite(timing.places).all()

    run(scenario)
