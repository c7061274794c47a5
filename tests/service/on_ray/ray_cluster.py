"""Several simulated Ray nodes on this machine, with the served application on them; nothing of it is left behind."""

import contextlib
import os
import threading
import time

import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster
from redis_server import free_port
from served import eventually

from service.on_ray.application import NAME, build, describe

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_DEDUP_LOGS": "0",
}
STORE_BYTES = 100 * 2**20


class Served:
    """The application on a head, where HTTP and the ingress are, and on workers with room for one replica each."""

    def __init__(self, settings, workers):
        self.settings, self.port = settings, free_port()
        self.cluster = Cluster(initialize_head=True, head_node_args=self._node(num_cpus=0))
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="error")
        serve.start(http_options={"host": "127.0.0.1", "port": self.port}, proxy_location="HeadOnly")
        deploying = threading.Thread(
            target=serve.run, args=(build(settings, describe(settings)),), kwargs={"name": NAME}
        )
        deploying.start()
        self.workers = [self.cluster.add_node(**self._node(num_cpus=1)) for _ in range(workers)]
        deploying.join()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def processes(self, deployment):
        """Those of a deployment's replicas."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if f":{NAME}#{deployment}#" in "".join(process.cmdline()):
                    found.append(process)
        return found

    def close(self):
        children = psutil.Process().children(recursive=True)
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()
        mine = [child for child in children if _of_ray(child)]
        eventually(lambda: not [child for child in mine if _of_ray(child)], within_s=30)

    def _node(self, **more):
        agents = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
        ports = {name: free_port() for name in agents}
        return {"object_store_memory": STORE_BYTES, "include_dashboard": False, **ports, **more}


def _of_ray(process):
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and "ray" in " ".join(process.cmdline())
    return False


def quietly():
    """The environment of Ray's processes, before the first starts; returns what undoes it."""
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)

    def undo():
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    return undo
