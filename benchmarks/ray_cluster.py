"""Several simulated Ray nodes on this machine, with the served application on them; nothing of it is left behind."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from benchmarks.redis_server import free_port
from service.on_ray.application import NAME, build, describe
from service.settings import Settings

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # not 15 below everything else that runs here
    "RAY_agent_register_timeout_ms": "180000",  # a busy machine starts Ray's processes slowly
}
STORE_BYTES = 100 * 2**20
ATTEMPTS = 4
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


class Served:
    """The application on a head, where HTTP and the ingress are, and on workers with room for one replica each."""

    def __init__(self, settings: Settings, n_workers: int) -> None:
        self.settings, self.port = settings, free_port()
        self._before = {name: os.environ.get(name) for name in ENVIRONMENT}
        os.environ.update(ENVIRONMENT)
        self.cluster = Cluster()
        self._add_node(num_cpus=0)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="error")  # type: ignore[arg-type]
        serve.start(http_options={"host": "127.0.0.1", "port": self.port}, proxy_location="HeadOnly")
        deploying = threading.Thread(target=self.deploy, args=(settings,))
        deploying.start()
        self.workers = [self._add_node(num_cpus=1) for _ in range(n_workers)]
        deploying.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, settings: Settings, **more: Any) -> None:
        """These settings from now on; returns once all replicas run. `more` as `build` takes it."""
        serve.run(build(settings, describe(settings), **more), name=NAME)

    def processes(self, deployment: str) -> list[int]:
        """The processes of a deployment's replicas."""
        return [pid for pid in descendants(os.getpid()) if f":ServeReplica:{NAME}:{deployment}" in command(pid)]

    def close(self) -> None:
        """Ends everything that was started.

        Raises:
            RuntimeError: a process of Ray's outlived that.
        """
        mine = [pid for pid in descendants(os.getpid()) if is_ray(pid)]
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()
        for name, value in self._before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        deadline = time.monotonic() + 30
        while left := [pid for pid in mine if is_ray(pid)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"left behind: {[command(pid) for pid in left]}")
            time.sleep(0.05)

    def _add_node(self, **more: Any) -> Any:
        """The first is the head. A raylet gives its agents 15 s, which a busy machine may not have: then once more."""
        for attempt in range(ATTEMPTS):
            ports: dict[str, Any] = {name: free_port() for name in AGENT_PORTS}
            try:
                return self.cluster.add_node(object_store_memory=STORE_BYTES, include_dashboard=False, **ports, **more)
            except Exception as error:  # Ray raises just that
                if "timed out during startup" not in str(error) or attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError


def descendants(pid: int) -> Iterator[int]:
    """All processes below one."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from descendants(int(child))


def command(pid: int) -> str:
    """Its command line, or the title that Ray gave it; empty once it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def is_ray(pid: int) -> bool:
    return "ray" in command(pid)
