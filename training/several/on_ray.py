"""Run jobs as tasks of a Ray cluster: Ray chooses the nodes, and starts a task again whose worker died.

Every task resumes what is there of its run. So a task that starts again, on any node, goes on from the last checkpoint,
if data and outputs lie in a folder that all nodes see under one path.
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
from smn_core.verbs.stderr import note
from training.several.jobs import Job, OnJobStep, PushFailed, RunFailed, work

try:
    import ray
except ImportError as error:
    raise InvalidArgument("--on ray needs Ray: uv pip install -e '.[ray]'") from error


@dataclass(frozen=True)
class Cluster:
    """Where tasks run, and the CPUs and GPUs that each asks for.

    `address` "" means RAY_ADDRESS, or a Ray that runs on this machine, or else one that is started for this call.
    """

    address: str = ""
    cpus: float = 1
    gpus: float = 0
    retries: int = 0


class Board:
    """An actor that collects the steps of all tasks for the driver."""

    def __init__(self) -> None:
        self._news: dict[int, int] = {}
        self._some = asyncio.Event()

    async def tell(self, number: int, step: int) -> None:
        """Note the steps that a job has done."""
        self._news[number] = step
        self._some.set()

    async def read(self) -> dict[int, int]:
        """Wait for a step, then return the steps done by each job that moved since the last call."""
        await self._some.wait()
        self._some.clear()
        news, self._news = self._news, {}
        return news


def work_on_ray(
    jobs: Sequence[Job], on_step: OnJobStep, *, cluster: Cluster, threads: int = 0, keep_going: bool = False
) -> dict[int, str]:
    """Do every job as a task. It is a `FanOut`.

    Args:
        threads: torch's threads of each job that names no number; 0: as many as the CPUs of a task.

    Raises:
        InvalidArgument: there is no Ray at the address.
    """
    if not jobs:
        return {}
    # Ray prints on stdout that a worker died; stdout belongs to results.
    with redirect_stdout(sys.stderr), _connect(cluster.address):
        _say_if_too_large(cluster)
        task = ray.remote(
            # A worker ends after one task: a run must not find what an earlier run left in its process.
            max_calls=1,
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            max_retries=cluster.retries,
            retry_exceptions=cluster.retries > 0,
        )(_run_task)
        board = ray.remote(num_cpus=0)(Board).remote()
        threads = threads or max(1, int(cluster.cpus))
        numbers = {
            task.options(name=job.request.out.name).remote(
                _resolve_paths(job), number, job.threads or threads, board
            ): number
            for number, job in enumerate(jobs)
        }
        try:
            return _listen(numbers, board, on_step, keep_going=keep_going)
        except BaseException:
            _stop(list(numbers))
            raise


@contextmanager
def _connect(address: str) -> Iterator[None]:
    """Connect to Ray for the block, unless this process is connected already."""
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


def _resolve_paths(job: Job) -> Job:
    """The job with absolute paths: a worker may start in another folder."""
    request = job.request
    spec = replace(request.spec, weights=request.spec.weights and request.spec.weights.absolute())
    data = request.data if request.data.startswith("torchvision:") else str(Path(request.data).expanduser().absolute())
    start = request.start and request.start.absolute()
    return replace(job, request=replace(request, spec=spec, data=data, out=request.out.absolute(), start=start))


def _say_if_too_large(cluster: Cluster) -> None:
    """Warn where no node has what a task asks for: Ray then waits for ever, since an autoscaler may add a node."""
    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cluster.cpus and node.get("GPU", 0) >= cluster.gpus for node in has):
        note(
            f"warning: no node has {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs for a run: waiting for one; "
            "--cpus and --gpus say what a run takes"
        )


def _listen(numbers: dict[Any, int], board: Any, on_step: OnJobStep, *, keep_going: bool) -> dict[int, str]:
    """Wait for all tasks, report their steps, and return why some failed, by number."""
    waiting, news = list(numbers), board.read.remote()
    failed = dict[int, str]()
    while waiting:
        ready, _ = ray.wait([*waiting, *([news] if news is not None else [])], num_returns=1)
        if ready[0] is news:
            news = _pass_on(news, board, on_step)
            continue
        waiting.remove(ready[0])
        number = numbers[ready[0]]
        if (trouble := _read_outcome(ready[0])) is not None:
            failed[number] = trouble
            if not keep_going:
                raise RunFailed(f"run {number + 1}: {trouble}")
    return failed


def _pass_on(news: Any, board: Any, on_step: OnJobStep) -> Any:
    """Report new steps, and return the next call to wait for; None if the board died: runs go on without it."""
    try:
        for number, step in ray.get(news).items():
            on_step(number, step)
    except ray.exceptions.RayError:
        return None
    return board.read.remote()


def _read_outcome(ref: Any) -> str | None:
    """Why a task failed that has ended; None if it did not fail."""
    try:
        found: str | None = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return str(error.cause) if isinstance(error.cause, SMNError) else str(error)
    except ray.exceptions.RayError as error:
        return f"its worker died: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return found


def _stop(refs: list[Any]) -> None:
    """Interrupt every task, and wait until each has written a checkpoint."""
    for ref in refs:
        ray.cancel(ref)
    ray.wait(refs, num_returns=len(refs))


def _run_task(job: Job, number: int, threads: int, board: Any) -> str | None:
    """Do the job, in a worker.

    Returns the text of an error that another attempt would meet again. Every other error is raised: Ray then retries.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray's own processes ignore it, and cancel sends it
    torch.set_num_threads(threads)
    try:
        work(job, lambda step: board.tell.remote(number, step))
    except PushFailed:
        raise
    except SMNError as error:
        return str(error)
    return None
