"""One Ray cluster of simulated nodes for all tests of this folder."""

import pytest

from benchmarks.redis_server import RedisServer
from service.settings import Settings

WORKERS = 2


@pytest.fixture(scope="session")
def redis(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def ray_settings(theta, redis, tmp_path_factory):
    """Of a small server: two slots a replica, fewer than masks."""
    theta.save(folder := tmp_path_factory.mktemp("theta"))
    return Settings(
        on="ray",
        registry=redis.url,
        backbone=theta.name,
        weights=folder / "theta.safetensors",
        image_size=32,
        model_arg=[f"{name}={value}" for name, value in theta.args.items()],
        replicas=WORKERS,
        slots=2,
        threads=1,
        max_images=64,
        queue_images=64,
        max_body_bytes=2**21,
        drain_s=5,
        log_format="console",
    )


@pytest.fixture(scope="session")
def served(ray_settings):
    """See `Served`."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from benchmarks.ray_cluster import Served

    running = Served(ray_settings, WORKERS)
    yield running
    running.close()
