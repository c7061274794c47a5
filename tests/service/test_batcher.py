"""The batcher's promises, on an engine that notes its batches and can be held."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from served import eventually, inputs, photo

from service.batcher import Batcher, EngineFailed
from service.settings import Settings
from smn_core.engine import Embedded, MaskEngine
from smn_core.errors import NotReady


class NotingEngine(MaskEngine):
    """z[i] = (the pixel of row i, the number in its mask's name); waits at `gate` before every batch."""

    capacity = backbone = None

    def __init__(self, capacity=4):
        self.capacity, self.backbone = capacity, SimpleNamespace(n_features=2)
        self.batches, self.gate, self.entered = [], threading.Event(), threading.Event()
        self.raising, self.raising_times = None, 1
        self.gate.set()

    def embed(self, x, segments):
        self.entered.set()
        assert self.gate.wait(10)
        if self.raising is not None:
            error, self.raising_times = self.raising, self.raising_times - 1
            if self.raising_times == 0:
                self.raising, self.raising_times = None, 1
            raise error
        self.batches.append([(s.mask, s.stop - s.start) for s in segments])
        out = torch.empty(len(x), 2)
        for s in segments:
            out[s.start : s.stop, 0] = x[s.start : s.stop, 0, 0, 0]
            out[s.start : s.stop, 1] = int(s.mask or -1)
        return Embedded(out, len(segments), 0.001, 0.002)


def rows(*values):
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)


@pytest.fixture
def engine():
    return NotingEngine()


@pytest.fixture
def run(engine):
    """`run(scenario, batch_size=..., heard=...)`: `await scenario(batcher)` on a loop of its own."""

    def ran(scenario, batch_size=4, **more):
        async def main():
            batcher = Batcher(engine, batch_size, **more)
            try:
                return await asyncio.wait_for(scenario(batcher), 20)
            finally:
                engine.gate.set()
                batcher.stop()

        return asyncio.run(main())

    return ran


async def hold(batcher, engine):
    """Keep the engine busy with one row of mask 99; what is embedded from now on waits until `engine.gate.set()`."""
    engine.gate.clear()
    engine.entered.clear()
    task = asyncio.create_task(batcher.embed("99", rows(0)))
    await until(engine.entered.is_set)
    return task


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def start(batcher, mask, *values):
    return asyncio.create_task(batcher.embed(mask, rows(*values)))


def test_rows_come_back_in_order_through_their_own_masks(engine, run):
    async def scenario(batcher):
        jobs = [(str(i % 5), [10 * i + j for j in range(1 + i % 3)]) for i in range(40)]
        found = await asyncio.gather(*(batcher.embed(mask, rows(*values)) for mask, values in jobs))
        for (mask, values), timing in zip(jobs, found, strict=True):
            assert timing.embeddings.tolist() == [[value, int(mask)] for value in values]

    run(scenario)


def test_a_batch_is_segments_of_equal_masks_up_to_the_batch_size(engine, run):
    async def scenario(batcher):
        held = await hold(batcher, engine)
        tasks = [start(batcher, mask, i) for i, mask in enumerate("12121")] + [start(batcher, None, 7)]
        await until(lambda: batcher.waiting == 6)
        engine.gate.set()
        await asyncio.gather(held, *tasks)

    run(scenario)
    assert engine.batches[0] == [("99", 1)]
    for batch in engine.batches[1:]:
        assert sum(n for _, n in batch) <= 4 and len({mask for mask, _ in batch}) == len(batch)
    assert len(engine.batches) == 3


def test_a_batch_holds_no_more_masks_than_the_engine_has_slots(engine, run):
    async def scenario(batcher):
        held = await hold(batcher, engine)
        tasks = [start(batcher, str(i), i) for i in range(10)]
        tasks += [start(batcher, None, 1)]
        await until(lambda: batcher.waiting == 11)
        engine.gate.set()
        await asyncio.gather(held, *tasks)

    run(scenario, batch_size=32)
    assert max(len({mask for mask, _ in batch} - {None}) for batch in engine.batches) == engine.capacity


def test_without_a_flood_the_oldest_rows_go_first(engine, run):
    order = []

    async def scenario(batcher):
        held = await hold(batcher, engine)
        tasks = []
        for i in range(8):
            tasks.append(start(batcher, str(i), i))
            tasks[-1].add_done_callback(lambda _, i=i: order.append(i))
            await until(lambda i=i: batcher.waiting == i + 1)
        engine.gate.set()
        await asyncio.gather(held, *tasks)

    run(scenario)
    assert set(order[:4]) == {0, 1, 2, 3}


def test_a_flood_on_one_mask_does_not_starve_another(engine, run):
    async def scenario(batcher):
        held = await hold(batcher, engine)
        flood = [start(batcher, "1", *range(10)) for _ in range(20)]
        await until(lambda: batcher.waiting == 200)
        quiet = start(batcher, "2", 5)
        await until(lambda: batcher.waiting == 201)
        engine.gate.set()
        await quiet
        await asyncio.gather(held, *flood)

    run(scenario)
    position = next(i for i, batch in enumerate(engine.batches) if ("2", 1) in batch)
    assert position == 1  # the first batch that was chosen after it came


def test_two_floods_share_the_engine_evenly(engine, run):
    async def scenario(batcher):
        held = await hold(batcher, engine)
        first = [start(batcher, "1", *range(20)) for _ in range(5)]
        await until(lambda: batcher.waiting == 100)
        second = [start(batcher, "2", *range(20)) for _ in range(5)]
        await until(lambda: batcher.waiting == 200)
        engine.gate.set()
        await asyncio.gather(held, *first, *second)

    run(scenario)
    for batch in engine.batches[2:40]:
        assert dict(batch) == {"1": 2, "2": 2}


def test_a_request_larger_than_a_batch_is_split_and_put_together_again(engine, run):
    async def scenario(batcher):
        timing = await batcher.embed("3", rows(*range(11)))
        assert timing.embeddings.tolist() == [[i, 3] for i in range(11)]
        assert timing.forward_s == pytest.approx(3 * 0.002) and timing.swap_s == pytest.approx(3 * 0.001)

    run(scenario)
    assert [batch[0][1] for batch in engine.batches] == [4, 4, 3]


def test_a_cancelled_job_is_dropped_before_it_runs(engine, run):
    async def scenario(batcher):
        held = await hold(batcher, engine)
        gone, stays = start(batcher, "1", *range(8)), start(batcher, "2", 7)
        await until(lambda: batcher.waiting == 9)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        engine.gate.set()
        await asyncio.gather(held, stays)
        assert batcher.waiting == 0

    run(scenario)
    assert engine.batches == [[("99", 1)], [("2", 1)]]


def test_a_failing_forward_answers_its_jobs_and_the_thread_lives_on(engine, run):
    async def scenario(batcher):
        lost = await hold(batcher, engine)
        next_one = start(batcher, "2", *range(9))
        await until(lambda: batcher.waiting == 9)
        engine.raising = RuntimeError("out of memory")
        engine.gate.set()
        with pytest.raises(EngineFailed, match="out of memory"):
            await lost
        assert (await next_one).embeddings.tolist() == [[i, 2] for i in range(9)]
        assert (await batcher.embed("1", rows(5))).embeddings.tolist() == [[5, 1]]
        assert batcher.alive and batcher.waiting == 0

    run(scenario)


def test_a_failed_job_s_other_rows_are_not_run_for_nobody(engine, run):
    async def scenario(batcher):
        engine.raising = RuntimeError("out of memory")
        with pytest.raises(EngineFailed):
            await batcher.embed("1", rows(*range(40)))
        await batcher.embed("2", rows(1))

    run(scenario)
    assert engine.batches == [[("2", 1)]]


def test_a_mask_let_go_by_a_client_that_hung_up_does_not_fail_its_batch_mates(engine, run):
    async def scenario(batcher):
        held = await hold(batcher, engine)
        gone, stays = start(batcher, "1", 1), start(batcher, "2", 2)
        await until(lambda: batcher.waiting == 2)
        real = engine.embed

        def evicted(x, segments):
            if any(s.mask == "1" for s in segments):
                gone.get_loop().call_soon_threadsafe(gone.cancel)
                eventually(gone.done)
                raise NotReady("mask 1 is not prepared")
            return real(x, segments)

        engine.embed = evicted
        engine.gate.set()
        await held
        assert (await stays).embeddings.tolist() == [[2, 2]]

    run(scenario)


def test_telemetry_hears_of_every_batch(engine, run):
    heard = []

    async def scenario(batcher):
        await batcher.embed("1", rows(*range(5)))

    run(scenario, heard=heard.append)
    assert [(done.images, done.masks) for done in heard] == [(4, 1), (1, 1)]


def test_stopping_ends_the_thread(engine):
    batcher = Batcher(engine, 4)
    batcher.stop()
    assert not batcher.alive


# --- the same over HTTP


@pytest.fixture
def slow(serve):
    """A client whose engine waits at `gate` from now on; every batch is announced by `entered`."""

    def start(**settings):
        client = serve(**settings)
        engine = client.app.state.server.embedder.engine
        real, client.gate, client.entered = engine.embed, threading.Event(), threading.Event()

        def embed(x, segments):
            client.entered.set()
            assert client.gate.wait(20)
            return real(x, segments)

        engine.embed = embed
        clients.append(client)
        return client

    clients = []
    yield start
    for client in clients:
        client.gate.set()


def post(client, body=None, **headers):
    named = {"Content-Type": "image/png", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return client.post("/embed", content=photo() if body is None else body, headers=named)


def in_background(call, *args, **named):
    box = {}
    thread = threading.Thread(target=lambda: box.setdefault("answer", call(*args, **named)))
    thread.start()
    return thread, box


def test_a_full_queue_answers_429_with_retry_after_before_anything_is_decoded(slow, require_error):
    client = slow(queue_images=2, batch_size=1)
    waiting = [in_background(post, client) for _ in range(2)]
    server = client.app.state.server
    eventually(lambda: server.admission.admitted == 2)
    answer = post(client, b"this would be 422 if it were decoded")
    require_error(answer, 429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    client.gate.set()
    for thread, box in waiting:
        thread.join(20)
        assert box["answer"].status_code == 200
    assert post(client).status_code == 200


def test_an_array_s_rows_are_counted_as_images(slow, require_error):
    from independent_client import NPY, as_npy

    client = slow(queue_images=3)
    thread, box = in_background(post, client)
    eventually(lambda: client.app.state.server.admission.admitted == 1)
    require_error(post(client, as_npy(inputs(3)), Content_Type=NPY), 429, "queue_full")
    client.gate.set()
    thread.join(20)
    assert box["answer"].status_code == 200
    assert post(client, as_npy(inputs(3)), Content_Type=NPY).status_code == 200


def test_a_request_that_no_empty_queue_would_hold_is_too_large_not_too_early(slow, require_error):
    """429 would have it sent again for ever."""
    from independent_client import NPY, as_npy

    client = slow(queue_images=3)
    client.gate.set()
    assert "at most 3" in require_error(post(client, as_npy(inputs(4)), Content_Type=NPY), 413, "too_many_images")


def test_a_request_past_its_deadline_is_answered_504(slow, require_error):
    client = slow(timeout_ms=60_000)
    answer = post(client, X_Timeout_Ms="50")
    assert "50 ms" in require_error(answer, 504, "deadline")
    client.gate.set()
    assert post(client, X_Timeout_Ms="20000").status_code == 200


def test_the_server_s_own_deadline_holds_where_the_client_asks_for_longer(slow, require_error):
    client = slow(timeout_ms=50)
    require_error(post(client, X_Timeout_Ms="60000"), 504, "deadline")


def test_work_of_a_client_that_hangs_up_is_dropped(real, theta):
    import http.client
    import urllib.request

    def counted():
        with urllib.request.urlopen(f"{real.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    for _ in range(4):
        connection = http.client.HTTPConnection("127.0.0.1", real.port)
        connection.request("POST", "/embed", photo(size=(3000, 3000)), {"Content-Type": "image/png"})
        connection.close()
    eventually(lambda: counted()["smn_queue_images"] == 0)
    assert post_ok(real)


def post_ok(real):
    import urllib.request

    request = urllib.request.Request(f"{real.url}/embed", photo(), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status == 200


def test_a_hang_up_takes_the_queued_rows_with_it(make_app, theta):
    app = make_app(batch_size=1)
    server = app.state.server
    real, gate, entered = server.embedder.engine.embed, threading.Event(), threading.Event()
    ran = []

    def embed(x, segments):
        entered.set()
        assert gate.wait(20)
        ran.append(len(x))
        return real(x, segments)

    async def ask(body, hung_up):
        sent = []
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive():
            for message in messages:
                return message
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "http_version": "1.1"}
        await app({**scope, "headers": [(b"content-type", b"image/png")], "app": app}, receive, send)
        return sent

    async def main():
        async with app.router.lifespan_context(app):
            server.embedder.engine.embed = embed
            stays, goes = asyncio.Event(), asyncio.Event()
            first = asyncio.create_task(ask(photo(1), stays))
            await until(entered.is_set)
            second = asyncio.create_task(ask(photo(2), goes))
            await until(lambda: server.embedder.batcher.waiting == 1)
            goes.set()
            await second
            gate.set()
            assert (await first)[0]["status"] == 200
            await until(lambda: server.admission.admitted == 0 and server.in_flight == 0)

    asyncio.run(main())
    assert ran == [1]


def test_what_the_batcher_returns_is_what_plain_timm_gives(serve, theta):
    x, mask = inputs(5), theta.mask()
    client = serve(batch_size=2)
    from independent_client import NPY, as_npy

    client.put("/masks/m", content=mask.data)
    answer = client.post("/embed?mask=m", content=as_npy(x), headers={"Content-Type": NPY})
    assert np.allclose(np.array(answer.json()["embeddings"]), theta.embed(x, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "threads", "on_gpu", "images"),
    [(0, 1, False, 8), (0, 2, False, 16), (0, 16, False, 32), (0, 1, True, 32), (5, 16, False, 5), (64, 1, True, 64)],
)
def test_a_batch_has_eight_images_a_thread_unless_a_number_is_given(given, threads, on_gpu, images):
    assert Settings(batch_size=given).with_batch_size(threads, on_gpu=on_gpu).batch_size == images


def test_the_number_that_was_taken_is_told_to_clients(serve):
    assert serve(threads=1).get("/info").json()["limits"]["batch_size"] == 8
    assert serve(threads=1, batch_size=3).get("/info").json()["limits"]["batch_size"] == 3
