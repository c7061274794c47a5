"""The same jobs as tasks of a Ray cluster: Ray places, retries and restarts; a checkpoint on a shared folder goes on.

Every task is told to resume, so a retry after a worker or a node died begins at the last checkpoint, wherever it runs,
as long as data and outputs lie in a folder that all nodes see under one path.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smn_core.errors import InvalidArgument, SMNError
from smn_core.verbs.show import note
from training.several.jobs import Heard, Job, PushFailed, RunFailed, work

try:
    import ray
except ImportError as error:
    raise InvalidArgument("--on ray needs Ray: uv pip install '.[ray]'") from error


@dataclass(frozen=True)
class Cluster:
    """Where tasks run and what each asks for. `address` "": RAY_ADDRESS, a Ray that runs here, or one for this run."""

    address: str = ""
    cpus: float = 1
    gpus: float = 0
    retries: int = 0


class Board:
    """An actor on which tasks write how far they are; its reader waits for news."""

    def __init__(self) -> None:
        self._news: dict[int, int] = {}
        self._some = asyncio.Event()

    async def tell(self, number: int, step: int) -> None:
        self._news[number] = step
        self._some.set()

    async def read(self) -> dict[int, int]:
        """Steps by job, of those that moved since the last call; waits for one."""
        await self._some.wait()
        self._some.clear()
        news, self._news = self._news, {}
        return news


def work_on_ray(
    jobs: Sequence[Job], heard: Heard, *, cluster: Cluster, threads: int = 0, keep_going: bool = False
) -> dict[int, str]:
    """Do every job as a task; see `FanOut`.

    Args:
        threads: torch's threads of each job that does not say; 0: as many as CPUs.

    Raises:
        InvalidArgument: there is no Ray at the address.
    """
    if not jobs:
        return {}
    # Ray tells of a worker's death on stdout, which belongs to results.
    with redirect_stdout(sys.stderr), _connected(cluster.address):
        _say_if_too_large(cluster)
        task = ray.remote(
            # Its own process, as a run beside others has: nothing of one run is there for the next.
            max_calls=1,
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            max_retries=cluster.retries,
            retry_exceptions=cluster.retries > 0,
        )(_task)
        board = ray.remote(num_cpus=0)(Board).remote()
        threads = threads or max(1, int(cluster.cpus))
        numbers = {
            task.options(name=job.request.out.name).remote(_placed(job), number, job.threads or threads, board): number
            for number, job in enumerate(jobs)
        }
        try:
            return _listen(numbers, board, heard, keep_going=keep_going)
        except BaseException:
            _stop(list(numbers))
            raise


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Ray, for as long as it takes; one that this process uses already is left as it is."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address or None, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray has no one class for what keeps it from starting or answering
        ray.shutdown()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"no Ray answers at {address}" if address else "Ray does not start here"
        raise InvalidArgument(f"--on ray: {where}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _placed(job: Job) -> Job:
    """Paths in full: a worker may start in another folder."""
    request = job.request
    spec = replace(request.spec, weights=request.spec.weights and request.spec.weights.absolute())
    data = request.data if request.data.startswith("torchvision:") else str(Path(request.data).expanduser().absolute())
    start = request.start and request.start.absolute()
    return replace(job, request=replace(request, spec=spec, data=data, out=request.out.absolute(), start=start))


def _say_if_too_large(cluster: Cluster) -> None:
    """Ray waits without an end for a node that has what a task asks for: an autoscaler may bring one."""
    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cluster.cpus and node.get("GPU", 0) >= cluster.gpus for node in has):
        note(
            f"warning: no node has {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs for a run: waiting for one; "
            "--cpus and --gpus say what a run takes"
        )


def _listen(numbers: dict[Any, int], board: Any, heard: Heard, *, keep_going: bool) -> dict[int, str]:
    """Until all tasks ended: hand on what the board says, and collect why some failed."""
    waiting, news = list(numbers), board.read.remote()
    failed = dict[int, str]()
    while waiting:
        ready, _ = ray.wait([*waiting, *([news] if news is not None else [])], num_returns=1)
        if ready[0] is news:
            news = _pass_on(news, board, heard)
            continue
        waiting.remove(ready[0])
        number = numbers[ready[0]]
        if (trouble := _outcome(ready[0])) is not None:
            failed[number] = trouble
            if not keep_going:
                raise RunFailed(f"run {number + 1}: {trouble}")
    return failed


def _pass_on(news: Any, board: Any, heard: Heard) -> Any:
    """What to wait for next; None where the board is gone with its node: the runs go on without."""
    try:
        for number, step in ray.get(news).items():
            heard(number, step)
    except ray.exceptions.RayError:
        return None
    return board.read.remote()


def _outcome(ref: Any) -> str | None:
    """Why a task that ended failed, or None."""
    try:
        found: str | None = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return str(error.cause) if isinstance(error.cause, SMNError) else str(error)
    except ray.exceptions.RayError as error:
        return f"its worker died: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return found


def _stop(refs: list[Any]) -> None:
    """Ctrl-C in every task, and wait for their checkpoints."""
    for ref in refs:
        ray.cancel(ref)
    ray.wait(refs, num_returns=len(refs))


def _task(job: Job, number: int, threads: int, board: Any) -> str | None:
    """In a worker: do the job. What no other attempt would mend is returned; all else is raised, for Ray to retry."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray's own processes ignore it, and cancel sends it
    torch.set_num_threads(threads)
    try:
        work(job, lambda step: board.tell.remote(number, step))
    except PushFailed:
        raise
    except SMNError as error:
        return str(error)
    return None
