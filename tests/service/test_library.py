"""The library's promises, on a registry that counts and can be held, and a real engine."""

import asyncio
import contextlib
import threading

import numpy as np
import pytest
from served import eventually, inputs

from service.library import Library
from service.registry.base import Registry, Resolved
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidMask, NotFound, Unavailable


class HeldRegistry(Registry):
    """Blobs by digest; counts fetches, waits at `gate`, raises what it is told to."""

    def __init__(self, masks):
        self.blobs = {mask.digest: mask.data for mask in masks}
        self.fetched, self.gate, self.raising = [], threading.Event(), None
        self.held, self.names = set(), {}
        self.gate.set()

    def resolve(self, _, reference):
        if reference not in self.names:
            raise NotFound(f"no mask is named {reference}")
        return Resolved(reference, 1, self.names[reference])

    def blob(self, digest):
        self.fetched.append(digest)
        if not self.held or digest in self.held:
            assert self.gate.wait(10)
        if self.raising is not None:
            raise self.raising
        if digest not in self.blobs:
            raise NotFound(f"no blob {digest}")
        return self.blobs[digest]


@pytest.fixture(scope="module")
def masks(theta):
    return [theta.mask(seed) for seed in range(4)]


@pytest.fixture
def registry(masks):
    return HeldRegistry(masks)


@pytest.fixture
def engine(theta):
    return Engine(theta.backbone(), slots=2)


@pytest.fixture
def run(registry, engine):
    """`run(scenario, budget)`: `await scenario(library)` on a loop of its own."""

    def ran(scenario, budget=2**30):
        async def main():
            library = Library(registry, engine, budget)
            try:
                return await asyncio.wait_for(scenario(library), 20)
            finally:
                registry.gate.set()
                library.close()

        return asyncio.run(main())

    return ran


async def touch(library, mask):
    async with library.hold(mask.digest):
        pass


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_fifty_requests_for_a_cold_mask_fetch_it_once(run, registry, masks, engine):
    async def scenario(library):
        registry.gate.clear()
        tasks = [asyncio.create_task(touch(library, masks[0])) for _ in range(50)]
        await until(lambda: registry.fetched)
        registry.gate.set()
        await asyncio.gather(*tasks)
        await touch(library, masks[0])

    run(scenario)
    assert registry.fetched == [masks[0].digest] and engine.ready(masks[0].digest)


def test_who_asks_while_the_engine_has_a_mask_whose_shelf_is_not_filled_waits_for_it(run, registry, theta, engine):
    mask = theta.mask(7, head=(np.ones((2, theta.plain.num_features), np.float32), np.zeros(2, np.float32), ["x", "y"]))
    registry.blobs[mask.digest] = mask.data
    prepare, gate = engine.prepare, threading.Event()

    def prepare_and_wait(found):
        warnings = prepare(found)
        assert gate.wait(10)
        return warnings

    engine.prepare = prepare_and_wait

    async def scenario(library):
        asking = [asyncio.create_task(library.head(mask.digest))]
        await until(lambda: engine.ready(mask.digest))
        asking.append(asyncio.create_task(library.head(mask.digest)))
        await asyncio.sleep(0.05)
        gate.set()
        assert [head.classes for head in await asyncio.gather(*asking)] == [("x", "y")] * 2

    run(scenario)


def test_a_waiter_that_hangs_up_does_not_stop_the_load_for_the_others(run, registry, masks):
    async def scenario(library):
        registry.gate.clear()
        first, second = (asyncio.create_task(touch(library, masks[0])) for _ in range(2))
        await until(lambda: registry.fetched)
        first.cancel()
        registry.gate.set()
        await second

    run(scenario)
    assert len(registry.fetched) == 1


def test_a_load_whose_waiters_all_hung_up_is_counted_and_joined_by_who_comes_next(run, registry, masks, engine):
    async def scenario(library):
        registry.gate.clear()
        gone = asyncio.create_task(touch(library, masks[0]))
        await until(lambda: registry.fetched)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        late = asyncio.create_task(touch(library, masks[0]))
        await asyncio.sleep(0)
        registry.gate.set()
        await late
        assert library.bytes > 0 and library.count == 1

    run(scenario)
    assert len(registry.fetched) == 1


def test_over_the_budget_the_least_recently_used_goes_first(run, masks, engine):
    async def scenario(library):
        await touch(library, masks[0])
        library._budget = 5 * library.bytes // 2  # two masks of about this size, not three
        for mask in (masks[1], masks[0], masks[2]):
            await touch(library, mask)
        assert library.bytes <= library._budget
        assert [engine.ready(mask.digest) for mask in masks[:3]] == [True, False, True]

    run(scenario)


def test_what_is_held_is_never_evicted(run, masks, engine):
    async def scenario(library):
        async with library.hold(masks[0].digest):
            for mask in masks[1:]:
                await touch(library, mask)
            assert engine.ready(masks[0].digest)
            engine.embed(__import__("torch").from_numpy(inputs()), [Segment(masks[0].digest, 0, 1)])
        assert library.count == 0 and library.bytes == 0

    run(scenario, budget=1)


def test_what_is_pinned_is_never_evicted(run, registry, masks, engine):
    async def scenario(library):
        await library.pin(["m"])
        for mask in masks[1:]:
            await touch(library, mask)
        assert engine.ready(masks[0].digest) and library.count == 1

    registry.names["m"] = masks[0].digest
    run(scenario, budget=1)


def test_a_pinned_cascade_is_kept_with_its_masks_and_served_while_the_registry_is_away(run, registry, theta):
    from cascades import build

    cascade = build(theta)
    others = [theta.mask(seed) for seed in range(50, 54)]
    registry.blobs = {mask.digest: mask.data for mask in (*cascade.masks, *others)} | {cascade.digest: cascade.data}
    registry.names["c"] = cascade.digest

    async def scenario(library):
        await library.pin(["cascade:c"])
        for mask in others:
            await touch(library, mask)
        registry.raising = Unavailable("the registry is away")
        async with library.hold_cascade(cascade.digest) as found, library.hold(*found.masks):
            assert library.count == 1 + len(cascade.masks)

    run(scenario, budget=1)


def test_a_pinned_name_is_pinned_at_its_newest_version_alone(run, registry, masks, engine):
    async def scenario(library):
        for mask in (masks[0], masks[1], masks[0]):
            registry.names["m"] = mask.digest
            await library.pin(["m"])
            assert engine.ready(mask.digest) and library.count == 1

    run(scenario, budget=1)


def test_a_pin_that_cannot_be_followed_keeps_what_it_has_and_the_others_move_on(run, registry, masks, engine):
    async def scenario(library):
        await library.pin(["gone", "m"])
        del registry.names["gone"]
        registry.names["m"] = masks[2].digest
        with pytest.raises(NotFound):
            await library.pin(["gone", "m"])
        assert [engine.ready(mask.digest) for mask in masks[:3]] == [True, False, True]

    registry.names |= {"gone": masks[0].digest, "m": masks[1].digest}
    run(scenario, budget=1)


@pytest.mark.parametrize("backend", ["directory", "redis"])
def test_a_pinned_name_stays_in_memory_through_uploads_and_rollbacks(serve, theta, masks, tmp_path, backend):
    from served import eventually

    from benchmarks.redis_server import RedisServer
    from service.registry.open import open_registry

    with contextlib.ExitStack() as stack:
        place = tmp_path / "r" if backend == "directory" else stack.enter_context(RedisServer(tmp_path / "redis")).url
        fingerprint = theta.backbone().fingerprint
        other = open_registry(place, fingerprint)
        stack.callback(other.close)
        other.publish("masks", "m", masks[0].data)
        client = serve(registry=open_registry(place, fingerprint), pin=["m"], cache_bytes=2**20)
        server = client.app.state.server
        server.embedder.library._budget = 1
        ready = server.embedder.engine.ready
        assert ready(masks[0].digest)
        assert client.put("/masks/m", content=masks[1].data).status_code == 201
        eventually(lambda: ready(masks[1].digest) and not ready(masks[0].digest))
        client.put("/masks/m/current", json={"version": 1})
        eventually(lambda: ready(masks[0].digest) and not ready(masks[1].digest))
        client.delete("/masks/m", params={"version": 2})
        assert client.put("/masks/other", content=masks[2].data).status_code == 201
        if backend == "redis":  # from another process too: the stream tells
            other.publish("masks", "m", masks[3].data)
            eventually(lambda: ready(masks[3].digest) and not ready(masks[0].digest))


def test_after_a_load_that_broke_in_an_unforeseen_way_pinned_names_are_still_followed(serve, theta, masks, tmp_path):
    from served import eventually

    from service.registry.directory import DirectoryRegistry

    registry = DirectoryRegistry(tmp_path / "r", theta.backbone().fingerprint)
    registry.publish("masks", "m", masks[0].data)
    client = serve(registry=registry, pin=["m"])
    engine = client.app.state.server.embedder.engine
    prepare, broken = engine.prepare, []

    def break_once(mask):
        if not broken:
            broken.append(mask)
            raise RuntimeError("CUDA out of memory")
        return prepare(mask)

    engine.prepare = break_once
    assert client.put("/masks/m", content=masks[1].data).status_code == 201
    eventually(lambda: broken)
    assert client.put("/masks/m", content=masks[2].data).status_code == 201
    eventually(lambda: engine.ready(masks[2].digest))


def test_a_mask_that_was_evicted_is_fetched_again(run, registry, masks):
    async def scenario(library):
        await touch(library, masks[0])
        await touch(library, masks[0])

    run(scenario, budget=1)
    assert registry.fetched == [masks[0].digest] * 2


def test_a_failed_load_is_told_to_all_who_wait_and_tried_again_next_time(run, registry, masks):
    async def scenario(library):
        registry.raising = Unavailable("the registry is away")
        found = await asyncio.gather(*(touch(library, masks[0]) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(error, Unavailable) for error in found)
        assert library.count == 0
        registry.raising = None
        await touch(library, masks[0])
        assert library.count == 1

    run(scenario)
    assert len(registry.fetched) == 2


def test_a_blob_that_is_no_mask_is_refused_and_not_kept(run, registry, masks):
    async def scenario(library):
        registry.blobs[masks[0].digest] = b"damaged"
        with pytest.raises(InvalidMask):
            await touch(library, masks[0])
        assert library.count == 0 and library.bytes == 0

    run(scenario)


def test_a_cold_load_does_not_block_masks_that_are_ready(run, registry, masks):
    async def scenario(library):
        await touch(library, masks[0])
        registry.held, cold = {masks[1].digest, masks[2].digest}, []
        registry.gate.clear()
        cold = [asyncio.create_task(touch(library, mask)) for mask in masks[1:3]]
        await until(lambda: len(registry.fetched) == 3)
        await touch(library, masks[0])
        assert not any(task.done() for task in cold)
        registry.gate.set()
        await asyncio.gather(*cold)

    run(scenario)


def test_away_from_its_registry_a_server_serves_what_it_holds_and_answers_503_for_the_rest(
    serve, theta, masks, require_error, monkeypatch
):
    from served import photo

    client = serve()
    for name, mask in (("hot", masks[0]), ("cold", masks[1])):
        client.put(f"/masks/{name}", content=mask.data)

    def embed(name):
        return client.post("/embed", params={"mask": name}, content=photo(), headers={"Content-Type": "image/png"})

    assert embed("hot").status_code == 200

    def away(*_, **__):
        raise Unavailable("the registry is away")

    registry = client.app.state.server.registry
    for method in ("blob", "publish", "check", "set_current", "delete"):
        monkeypatch.setattr(registry, method, away)
    monkeypatch.setattr(registry._records, "check", away)  # what the look of every second begins with
    assert embed("hot").status_code == 200
    answer = embed("cold")
    require_error(answer, 503, "unavailable")
    assert answer.headers["retry-after"]
    require_error(client.put("/masks/new", content=masks[2].data), 503, "unavailable")
    eventually(lambda: "away" in client.get("/readyz").json()["registry"])
    assert client.get("/readyz").status_code == 200
    assert "smn_registry_up 0.0" in client.get("/metrics").text
    monkeypatch.undo()
    eventually(lambda: client.get("/readyz").json()["registry"] == "ok")
    assert "smn_registry_writable 1.0" in client.get("/metrics").text
    assert embed("cold").status_code == 200


def test_a_registry_that_hangs_does_not_keep_images_from_being_decoded(serve, masks, monkeypatch):
    from served import photo

    client = serve(decode_workers=1)
    gate = threading.Event()
    registry = client.app.state.server.registry
    for method in ("names", "delete", "check"):
        monkeypatch.setattr(registry, method, lambda *_, **__: gate.wait(10))
    monkeypatch.setattr(registry._records, "check", lambda: gate.wait(10))
    calls = [(client.get, "/masks"), (client.delete, "/masks/m")] * 5
    asking = [threading.Thread(target=call, args=(path,)) for call, path in calls]
    for thread in asking:
        thread.start()
    for path in ("/readyz", "/metrics", "/livez"):
        assert client.get(path).status_code == 200 and not gate.is_set()
    answer = client.post("/embed", content=photo(), headers={"Content-Type": "image/png", "X-Timeout-Ms": "5000"})
    assert answer.status_code == 200 and not gate.is_set()
    gate.set()
    for thread in asking:
        thread.join()
