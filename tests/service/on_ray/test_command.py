"""`smn serve --on ray` as a command: where it cannot, exit code 2 and one line that names the fix; and its end."""

import os
import signal
import subprocess
import sys
import threading

import httpx2
import numpy as np
import pytest
from independent_client import NPY, as_npy
from served import eventually, inputs, relative_error

from benchmarks.redis_server import free_port
from service.settings import Settings


def serve(*arguments, before=""):
    code = (
        f"import sys\n{before}\nsys.argv = ['smn', 'serve', '--on', 'ray', *{list(arguments)}]\nimport smn\nsmn.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_without_the_extra_it_says_what_to_install():
    code, line = serve("--registry", "redis://127.0.0.1", before="sys.modules['ray'] = None")
    assert code == 2 and line == "smn: error: --on ray needs the extra ray: uv pip install -e '.[ray]'"


def test_a_folder_is_no_registry_for_several_nodes(tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    code, line = serve("--registry", str(tmp_path))
    assert code == 2 and "--registry redis://" in line


def test_an_address_that_others_reach_needs_an_admin_key():
    pytest.importorskip("ray", reason="the extra ray is not installed")
    code, line = serve("--registry", "redis://127.0.0.1", "--host", "0.0.0.0")
    assert code == 2 and "SMN_ADMIN_KEYS" in line


def test_more_replicas_than_the_least_are_for_ray_to_add():
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from service.on_ray.application import _how_many

    assert _how_many(Settings(on="ray", replicas=3)) == {"num_replicas": 3}
    scaling = _how_many(Settings(on="ray", replicas=2, max_replicas=5, batch_size=16))["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 16)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_it_starts_a_cluster_where_there_is_none_and_sigterm_ends_all_of_it(theta, redis, tmp_path):
    """What is in work is answered, the exit code is 0, and no process of Ray's is left."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from benchmarks.ray_cluster import ENVIRONMENT, descendants, is_ray

    port, x = free_port(), inputs(32, seed=3)
    url = f"http://127.0.0.1:{port}"
    words = [*theta.save(tmp_path), "--registry", redis.url, "--port", str(port), "--threads", "1", "--device", "cpu"]
    command = [sys.executable, "-m", "smn", "serve", "--on", "ray", *words]
    environment = os.environ | ENVIRONMENT | {"RAY_ADDRESS": "local"}  # not the cluster of other tests
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        eventually(lambda: server.poll() is not None or _ready(url), 120)
        assert server.poll() is None, (tmp_path / "log").read_text()
        mine = [pid for pid in descendants(server.pid) if is_ray(pid)]
        answers = []

        def ask():
            answers.append(httpx2.post(f"{url}/embed", content=as_npy(x), headers={"Content-Type": NPY}, timeout=60))

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: "smn_queue_images 0" not in httpx2.get(f"{url}/metrics").text or answers, 10)
        server.send_signal(signal.SIGTERM)
        asking.join()
        assert answers[0].status_code == 200
        assert relative_error(np.array(answers[0].json()["embeddings"]), theta.embed(x, None)) < 1e-4
        assert server.wait(60) == 0
        eventually(lambda: not any(is_ray(pid) for pid in mine), 30)
    finally:
        server.kill()


def _ready(url):
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False
