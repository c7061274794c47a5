"""Run jobs side by side on this machine, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

import torch

from smn_core.errors import InvalidArgument, SMNError
from training.several.jobs import Job, OnJobStep, PushFailed, RunFailed, work

OVERDUE_S = 5.0
"""A run that was asked to stop has so much time. After that its next step raises KeyboardInterrupt itself."""


@dataclass
class _Child:
    """A process and the job in it. `may_retry`: another attempt may succeed where this one failed."""

    number: int
    process: BaseProcess
    pipe: Connection
    gpu: str
    done: bool = False
    trouble: str = ""
    may_retry: bool = True


def count_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def choose_processes(n_runs: int, device: str) -> int:
    """How many runs go on at once: one for each GPU, or one for each core."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return max(1, min(n_runs, torch.cuda.device_count() if on_gpu else count_cores()))


def work_here(jobs: Sequence[Job], on_step: OnJobStep, *, keep_going: bool = False) -> dict[int, str]:
    """Do the jobs in this process, one after the other. It is a `FanOut`."""
    failed = {}
    for number, job in enumerate(jobs):
        try:
            work(job, lambda step, number=number: on_step(number, step))  # type: ignore[misc]
        except SMNError as error:
            if not keep_going:
                raise
            failed[number] = str(error)
    return failed


def work_in_processes(
    jobs: Sequence[Job],
    on_step: OnJobStep,
    *,
    processes: int,
    threads: int = 0,
    retries: int = 0,
    keep_going: bool = False,
) -> dict[int, str]:
    """Do every job in a process of its own, `processes` of them at once. It is a `FanOut`.

    Args:
        threads: torch's threads of each job that names no number; 0 divides the cores among the processes.
        retries: how often a job is started again, from its checkpoint, after its process died or its upload failed.
    """
    if processes < 1:
        raise InvalidArgument(f"--processes {processes}: at least 1")
    if not jobs:
        return {}
    processes = min(processes, len(jobs))
    threads = threads or max(1, count_cores() // processes)
    free = _share_gpus(processes)
    waiting, running = list(enumerate(jobs)), list[_Child]()
    left, failed = [retries] * len(jobs), dict[int, str]()
    try:
        while waiting or running:
            while waiting and free:
                number, job = waiting.pop(0)
                running.append(_start(number, job, free.pop(0), job.threads or threads))
            for pipe in wait([child.pipe for child in running]):
                child = next(child for child in running if child.pipe is pipe)
                if _listen(child, on_step):
                    continue
                running.remove(child)
                free.append(child.gpu)
                child.pipe.close()
                if child.done:
                    continue
                if child.may_retry and left[child.number] > 0:
                    left[child.number] -= 1
                    waiting.insert(0, (child.number, jobs[child.number]))
                    continue
                failed[child.number] = _explain(child)
                if not keep_going:
                    raise RunFailed(f"run {child.number + 1}: {failed[child.number]}")
    finally:
        _stop(running)
    return failed


def _share_gpus(n: int) -> list[str]:
    """The device of each of `n` processes: the GPUs in turn, or "" without GPUs."""
    count = torch.cuda.device_count()
    return [f"cuda:{i % count}" if count else "" for i in range(n)]


def _context() -> SpawnContext | ForkServerContext:
    """How a run's process begins: forked from a process that has imported all and done nothing, in a tenth of a second.

    A fork of this process would copy torch's threads in whatever state they are. Where there is a GPU each process
    begins anew, for some seconds: CUDA works in no fork of a process in which a library has as much as looked for it.
    A run has the environment that this process had when the first run began.
    """
    if torch.cuda.device_count():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start(number: int, job: Job, gpu: str, threads: int) -> _Child:
    context = _context()
    ours, theirs = context.Pipe()
    spec = job.request.spec
    if gpu and spec.device in ("cuda", "auto"):
        spec = replace(spec, device=gpu)
    job = replace(job, request=replace(job.request, spec=spec), threads=threads)
    process = context.Process(target=_work, args=(theirs, job), name=f"smn-run-{number + 1}")
    # A child inherits blocked signals. Ctrl-C while it still imports would otherwise print a traceback of its own.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    return _Child(number, process, ours, gpu)


def _listen(child: _Child, on_step: OnJobStep) -> bool:
    """Handle one message of a child, or return False because its process has ended."""
    try:
        word, value = child.pipe.recv()
    except (EOFError, OSError):
        child.process.join()
        return False
    if word == "step":
        on_step(child.number, value)
    elif word == "done":
        child.done = True
    else:
        child.trouble, child.may_retry = value, word == "died"
    return True


def _explain(child: _Child) -> str:
    """Why a child failed, in words."""
    code = child.process.exitcode or 0
    died = f"it was killed by signal {-code}, perhaps for memory" if code < 0 else f"exit code {code}"
    return child.trouble or died


def _stop(running: Sequence[_Child]) -> None:
    """Ask every process to stop after its present step, and wait until each has written a checkpoint."""
    for child in running:
        with suppress(OSError):
            child.pipe.send("stop")
    for child in running:
        while _listen(child, lambda *_: None):
            pass
        child.pipe.close()


def _work(pipe: Connection, job: Job) -> None:
    """Do the job. This runs in the child, which sends its steps and its end through the pipe."""
    os.setpgrp()  # ctrl-C on the terminal reaches the parent alone, which then asks every child to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # drops a signal that waited: the parent asks through the pipe
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    overdue = threading.Event()
    threading.Thread(target=_stop_when_told, args=(pipe, overdue), daemon=True).start()
    torch.set_num_threads(job.threads)

    def tell(step: int) -> None:
        if overdue.is_set():
            raise KeyboardInterrupt
        pipe.send(("step", step))

    try:
        work(job, tell)
        pipe.send(("done", None))
    except (PushFailed, OSError) as error:  # the server or the disk may come back
        pipe.send(("died", str(error)))
    except SMNError as error:
        pipe.send(("failed", str(error)))
    except KeyboardInterrupt:
        pipe.send(("failed", "it was stopped"))
    except Exception:  # an error that nobody foresaw is reported with its traceback
        pipe.send(("died", traceback.format_exc()))


def _stop_when_told(pipe: Connection, overdue: threading.Event) -> None:
    """Wait for the parent's message or for its death, then raise KeyboardInterrupt in the main thread.

    A library may swallow that exception in a destructor or a callback. Then the next step raises it again.
    """
    with suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(OVERDUE_S)
    overdue.set()
