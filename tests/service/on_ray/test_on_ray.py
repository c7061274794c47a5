"""The service on several simulated Ray nodes: real Redis, real HTTP, real losses."""

import asyncio
import os
import signal
import threading
import time

import httpx2
import numpy as np
import pytest
from cascades import build, put_all
from independent_client import NPY, IndependentClient, as_npy
from served import eventually, inputs, photo, relative_error

from service.registry.redis import RedisRegistry

pytest.importorskip("ray", reason="the extra ray is not installed")

# Ray's own: its processes' sockets and pipes are closed by their end.
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
HEADERS = {"Content-Type": NPY}


@pytest.fixture
def http(served):
    with httpx2.Client(base_url=served.url, timeout=60) as client:
        yield client


@pytest.fixture
def plain(serve, redis, theta):
    """The same server in one process, on the same registry."""
    registry = RedisRegistry(redis.url, theta.backbone().fingerprint)
    return serve(registry=registry, max_images=64, max_body_bytes=2**21)


def put(http, name, mask):
    answer = http.put(f"/masks/{name}", content=mask.data)
    assert answer.status_code in (200, 201), answer.text
    return answer


def clients(url, ask, n_clients, until):
    """`ask(http, rng)` again and again by n clients until `until()`; when each answer came."""
    moments = []

    async def one(http, rng):
        while not until():
            await ask(http, rng)
            moments.append(time.monotonic())

    async def main():
        limits = httpx2.Limits(max_connections=n_clients)
        async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=60) as http:
            await asyncio.gather(*(one(http, np.random.default_rng(i)) for i in range(n_clients)))

    asyncio.run(main())
    return moments


def test_labels_and_spaces_are_those_of_a_single_process(served, plain, http, theta):
    head = (np.eye(3, 8, dtype=np.float32), np.zeros(3, np.float32), ["a", "b", "c"])
    put(http, "labelled", theta.mask(41, head=head))
    put(http, "plain", theta.mask(42))
    eventually(lambda: plain.get("/masks/plain").status_code == 200)
    asked = {"content": photo(3), "headers": {"Content-Type": "image/png"}}
    for client in (http, plain):
        answer = client.post("/classify", params={"mask": "labelled"}, **asked)
        assert answer.status_code == 200, answer.text
        assert client.post("/classify", params={"mask": "plain"}, **asked).json()["error"]["code"] == "no_head"
    mine, its = (client.post("/classify", params={"mask": "labelled"}, **asked) for client in (plain, http))
    assert its.json()["data"][0]["classes"] == mine.json()["data"][0]["classes"]
    assert its.headers["x-smn-space"] == mine.headers["x-smn-space"] == its.json()["space"]
    promised = {"mask": "labelled", "space": http.get("/info").json()["space"]}
    assert http.post("/embed", params=promised, **asked).json()["error"]["code"] == "other_space"


def test_embeddings_are_those_of_a_single_process(served, plain, http, theta):
    masks = [theta.mask(1), theta.mask(2), theta.mask(2, with_affine="float32")]
    for i, mask in enumerate(masks):
        put(http, f"same-{i}", mask)
    independent = IndependentClient(served.url)
    eventually(lambda: plain.get("/masks/same-2").status_code == 200)
    for n in (1, 3):
        x = inputs(n, seed=n)
        for mask, name in ((None, None), *((mask, f"same-{i}") for i, mask in enumerate(masks))):
            query, params = (f"?mask={name}", {"mask": name}) if name else ("", {})
            found = independent.embed(as_npy(x), NPY, NPY, **params)
            alone = plain.post(f"/embed{query}", content=as_npy(x), headers=HEADERS)
            assert found.status == 200, found.body
            assert np.allclose(found.npy, np.array(alone.json()["embeddings"]), rtol=1e-5, atol=1e-6)
            assert relative_error(found.npy, theta.embed(x, mask)) < 1e-4


@pytest.mark.parametrize("mode", ["unconditional", "conditional"])
def test_a_cascade_embeds_as_its_masks_and_its_formulas_say(http, theta, mode):
    cascade, x = build(theta, seed=5, maps=("float32", "diagonal")), inputs(9, seed=3)
    assert put_all(http, "fused", cascade).status_code in (200, 201)
    answer = http.post("/embed", content=as_npy(x), params={"cascade": "fused", "mode": mode}, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    wanted, chosen = cascade.embed(x, mode)
    assert relative_error(np.array(answer.json()["embeddings"]), wanted) < 1e-4
    assert answer.json()["cascade"]["experts"] == ((chosen + 1).tolist() if mode == "conditional" else None)


REFUSED = {
    "a name that is not there": ("POST", "/embed?mask=nobody", photo(), "image/png"),
    "no reference": ("POST", "/embed?mask=-", photo(), "image/png"),
    "two at once": ("POST", "/embed?mask=a&cascade=b", photo(), "image/png"),
    "too many dimensions": ("POST", "/embed?dimensions=9", photo(), "image/png"),
    "no image": ("POST", "/embed", b"text", "image/png"),
    "another type": ("POST", "/embed", b"text", "text/plain"),
    "too large": ("POST", "/embed", bytes(2**21 + 1), "image/png"),
    "too many images": ("POST", "/embed", as_npy(inputs(65)), NPY),
    "no mask file": ("PUT", "/masks/broken", b"text", "application/octet-stream"),
    "no route": ("GET", "/nothing", b"", ""),
    "another method": ("GET", "/embed", b"", ""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses_what_a_single_process_refuses_in_the_same_words(http, plain, what):
    method, path, body, kind = REFUSED[what]
    headers = {"Content-Type": kind} if kind else {}
    there, here = (client.request(method, path, content=body, headers=headers) for client in (http, plain))
    assert (there.status_code, there.json()) == (here.status_code, here.json())
    unlike = {"date", "server", "server-timing", "x-request-id", "transfer-encoding", "content-length"}
    assert set(there.headers) - unlike == set(here.headers) - unlike


def test_ids_go_in_and_out_once_and_stages_of_the_replica_reach_the_client(http):
    answer = http.post("/embed", content=photo(), headers={"Content-Type": "image/png", "X-Request-ID": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert {"decode", "queue", "swap", "forward", "total"} <= {
        part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")
    }


def test_a_deadline_that_passes_is_a_504(http):
    answer = http.post("/embed", content=as_npy(inputs(8)), headers={**HEADERS, "X-Timeout-Ms": "1"})
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline"


def test_info_and_readiness_and_metrics_tell_of_all_replicas(http, served, theta):
    info = http.get("/info").json()
    assert info["replicas"] == len(served.workers) and info["slots"]["capacity"] == 2 * len(served.workers)
    assert info["fingerprint"] == theta.backbone().fingerprint
    assert http.get("/readyz").json() == {"status": "ready", "reasons": [], "registry": "ok"}
    assert 'smn_request_total{outcome="ok",route="/info"}' in http.get("/metrics").text


def test_an_upload_elsewhere_is_used_within_100_ms(http, redis, theta):
    registry = RedisRegistry(redis.url, theta.backbone().fingerprint)
    masks, took_ms, x = [theta.mask(seed) for seed in range(2)], [], as_npy(inputs())
    try:
        registry.publish("masks", "fresh", masks[1].data)
        eventually(lambda: http.get("/masks/fresh").status_code == 200)
        for i in range(40):
            registry.publish("masks", "fresh", masks[i % 2].data)
            published = time.monotonic()
            while True:
                # A name is resolved after its request came, so it was known by then or is not yet.
                asked = time.monotonic()
                answer = http.post("/embed?mask=fresh", content=x, headers=HEADERS)
                if answer.headers["x-smn-digest"] == masks[i % 2].digest:
                    break
            took_ms.append(1e3 * (asked - published))
    finally:
        registry.close()
    assert np.percentile(took_ms, 99) <= 100, sorted(took_ms)[-5:]


def test_50_changing_masks_under_mixed_traffic_give_no_wrong_and_no_stale_embedding(http, served, theta):
    files = {f"mixed-{i}": [theta.mask(100 * i + version) for version in range(2)] for i in range(50)}
    x = inputs(2)
    wanted = {mask.digest: theta.embed(x, mask) for masks in files.values() for mask in masks}
    current = {}
    for name, masks in files.items():
        put(http, name, masks[0])
        current[name] = 0
    wrong, seen, asked = [], set(), [0]

    async def ask(client, rng):
        name = f"mixed-{rng.integers(50)}"
        asked[0] += 1
        if rng.random() < 0.15:
            version = int(rng.integers(2))
            answer = await client.put(f"/masks/{name}/current", json={"version": version + 1})
            if answer.status_code == 404:
                answer = await client.put(f"/masks/{name}", content=files[name][version].data)
            assert answer.status_code in (200, 201), answer.text
            return
        answer = await client.post("/embed", params={"mask": name}, content=as_npy(x), headers=HEADERS)
        assert answer.status_code == 200, answer.text
        digest = answer.headers["x-smn-digest"]
        seen.add(digest)
        if digest not in {mask.digest for mask in files[name]} or (
            relative_error(np.array(answer.json()["embeddings"]), wanted[digest]) > 1e-4
        ):
            wrong.append((name, digest))

    clients(served.url, ask, 12, lambda: asked[0] >= 600)
    assert wrong == [] and len(seen) > 50
    for name, masks in files.items():  # once a change is answered, nobody gets what was before
        put(http, name, masks[1])
        answer = http.post(f"/embed?mask={name}", content=as_npy(x), headers=HEADERS)
        assert answer.headers["x-smn-digest"] == masks[1].digest


def test_a_full_replica_refuses_and_the_client_hears_429_when_all_are_full(http, served, theta):
    from ray import serve

    from service.embedder import Through
    from service.on_ray.application import NAME
    from service.on_ray.call import Call

    replicas = serve.get_deployment_handle("Replica", NAME)
    # By the client's own address: another one would be admitted to its share of what this one took.
    call, x = Call(Through(), theta.backbone().fingerprint, 30.0, "full", who="127.0.0.1"), inputs(64)
    full = threading.Event()

    def fill():
        while not full.is_set():
            for response in [replicas.embed.remote(call, x) for _ in range(8)]:
                response.result()

    filling = [threading.Thread(target=fill) for _ in range(2)]
    for thread in filling:
        thread.start()
    try:
        refused = eventually(
            lambda: (a := http.post("/embed", content=as_npy(inputs(8)), headers=HEADERS)).status_code == 429 and a, 30
        )
    finally:
        full.set()
        for thread in filling:
            thread.join()
    assert refused.headers["retry-after"] == "1" and refused.json()["error"]["code"] == "queue_full"


def test_a_replica_with_another_backbone_refuses_by_fingerprint(served):
    from ray import serve

    from service.embedder import Through
    from service.on_ray.application import NAME
    from service.on_ray.call import Call

    replicas = serve.get_deployment_handle("Replica", NAME)
    found = replicas.embed.remote(Call(Through(), "f" * 64, 30.0, "other"), inputs()).result()
    assert found.elsewhere and "ffffffffffffffff" in str(found.error) and "same weights" in str(found.error)


def test_redis_away_leaves_masks_in_memory_and_refuses_others(http, redis, theta):
    put(http, "warm", theta.mask(7))
    x = as_npy(inputs())
    for _ in range(8):
        assert http.post("/embed?mask=warm", content=x, headers=HEADERS).status_code == 200
    put(http, "cold", theta.mask(8))
    redis.stop()
    try:
        assert http.post("/embed?mask=warm", content=x, headers=HEADERS).status_code == 200
        cold = http.post("/embed?mask=cold", content=x, headers=HEADERS)
        assert cold.status_code == 503 and cold.headers["retry-after"] and "away" in cold.json()["error"]["message"]
        # The watch looks every second, so readiness tells of it a moment after the first refusal.
        ready = eventually(lambda: (a := http.get("/readyz")).json()["reasons"] and a)
        assert ready.status_code == 200 and ready.json()["reasons"][0].startswith("registry: ")
    finally:
        redis.start()
    eventually(lambda: http.post("/embed?mask=cold", content=x, headers=HEADERS).status_code == 200, 30)


def test_an_ingress_that_starts_without_redis_says_so_and_goes_on_when_it_is_there(http, redis, served, theta):
    put(http, "later", theta.mask(9))
    redis.stop()
    x = as_npy(inputs())
    try:
        (pid,) = served.processes("Ingress")
        os.kill(pid, signal.SIGKILL)

        def refused():
            answer = http.post("/embed?mask=later", content=x, headers=HEADERS)
            return answer.status_code == 503 and "application/json" in answer.headers["content-type"] and answer

        answer = eventually(refused, 60)
        assert "away" in answer.json()["error"]["message"]
        assert http.post("/embed", content=x, headers=HEADERS).status_code == 200
    finally:
        redis.start()
    eventually(lambda: http.post("/embed?mask=later", content=x, headers=HEADERS).status_code == 200, 30)


def losing(served, theta, http, lose):
    """Clients of 6 masks while `lose` takes a replica away; when answers came, and what was no answer."""
    masks = [theta.mask(20 + i) for i in range(6)]
    for i, mask in enumerate(masks):
        put(http, f"lost-{i}", mask)
    x, failed = inputs(4), []
    wanted = [theta.embed(x, mask) for mask in masks]
    ends = [float("inf")]

    async def ask(client, rng):
        i = int(rng.integers(6))
        answer = await client.post("/embed", params={"mask": f"lost-{i}"}, content=as_npy(x), headers=HEADERS)
        if answer.status_code != 200:
            failed.append((answer.status_code, answer.text))
        elif relative_error(np.array(answer.json()["embeddings"]), wanted[i]) > 1e-4:
            failed.append(("wrong", i))

    def take_away():
        time.sleep(1.0)
        try:
            lose()
        finally:
            ends[0] = time.monotonic() + 4.0

    taking = threading.Thread(target=take_away)
    taking.start()
    moments = clients(served.url, ask, 8, lambda: time.monotonic() > ends[0])
    taking.join()
    return np.array(moments), failed


def test_a_replica_that_dies_in_the_middle_of_batches_costs_no_request(served, theta, http):
    def kill():
        os.kill(served.processes("Replica")[0], signal.SIGKILL)

    moments, failed = losing(served, theta, http, kill)
    assert failed == [] and len(moments) > 20
    eventually(lambda: http.get("/info").json()["replicas"] == len(served.workers), 180)


def test_a_node_that_goes_under_load_costs_no_request_and_answers_go_on_within_2_s(served, theta, http):
    moments, failed = losing(
        served, theta, http, lambda: served.cluster.remove_node(served.workers.pop(), allow_graceful=False)
    )
    assert failed == [] and len(moments) > 20
    assert np.diff(np.sort(moments)).max() < 2.0
