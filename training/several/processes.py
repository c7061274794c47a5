"""Several jobs of training side by side: one process each, up to as many at once as there are devices or cores."""

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
from multiprocessing.process import BaseProcess

import torch

from smn_core.errors import InvalidArgument, SMNError
from training.several.jobs import Heard, Job, PushFailed, RunFailed, work

OVERDUE_S = 5.0
"""From when a run is asked to stop to when its next step is made to."""


@dataclass
class _Child:
    number: int
    process: BaseProcess
    pipe: Connection
    gpu: str
    done: bool = False
    trouble: str = ""
    may_retry: bool = True
    """Whether another attempt may end otherwise."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def default_processes(n_runs: int, device: str) -> int:
    """Runs at once: one a GPU, or one a core."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return max(1, min(n_runs, torch.cuda.device_count() if on_gpu else cores()))


def work_here(jobs: Sequence[Job], heard: Heard, *, keep_going: bool = False) -> dict[int, str]:
    """Do the jobs in this process, one after the other; see `FanOut`."""
    failed = {}
    for number, job in enumerate(jobs):
        try:
            work(job, lambda step, number=number: heard(number, step))  # type: ignore[misc]
        except SMNError as error:
            if not keep_going:
                raise
            failed[number] = str(error)
    return failed


def work_in_processes(
    jobs: Sequence[Job],
    heard: Heard,
    *,
    processes: int,
    threads: int = 0,
    retries: int = 0,
    keep_going: bool = False,
) -> dict[int, str]:
    """Do every job in a process of its own, `processes` at once; see `FanOut`.

    Args:
        threads: torch's threads of each job that does not say; 0 shares the cores out.
        retries: how often a job begins again, from its checkpoint, whose process died or whose upload failed.
    """
    if processes < 1:
        raise InvalidArgument(f"--processes {processes}: at least 1")
    if not jobs:
        return {}
    processes = min(processes, len(jobs))
    threads = threads or max(1, cores() // processes)
    free = _gpus(processes)
    waiting, running = list(enumerate(jobs)), list[_Child]()
    left, failed = [retries] * len(jobs), dict[int, str]()
    try:
        while waiting or running:
            while waiting and free:
                number, job = waiting.pop(0)
                running.append(_start(number, job, free.pop(0), job.threads or threads))
            for pipe in wait([child.pipe for child in running]):
                child = next(child for child in running if child.pipe is pipe)
                if _listen(child, heard):
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
                failed[child.number] = _trouble(child)
                if not keep_going:
                    raise RunFailed(f"run {child.number + 1}: {failed[child.number]}")
    finally:
        _stop(running)
    return failed


def _gpus(n: int) -> list[str]:
    """A GPU for every process, in turn; "" where there is none."""
    count = torch.cuda.device_count()
    return [f"cuda:{i % count}" if count else "" for i in range(n)]


def _start(number: int, job: Job, gpu: str, threads: int) -> _Child:
    context = multiprocessing.get_context("spawn")  # a fork would take over torch's threads half-way
    ours, theirs = context.Pipe()
    spec = job.request.spec
    if gpu and spec.device in ("cuda", "auto"):
        spec = replace(spec, device=gpu)
    job = replace(job, request=replace(job.request, spec=spec), threads=threads)
    process = context.Process(target=_work, args=(theirs, job), name=f"smn-run-{number + 1}")
    # Ctrl-C while the child still imports would be a traceback of its own: it takes over that the signal waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    return _Child(number, process, ours, gpu)


def _listen(child: _Child, heard: Heard) -> bool:
    """Take one message; False once the process is gone."""
    try:
        word, value = child.pipe.recv()
    except (EOFError, OSError):
        child.process.join()
        return False
    if word == "step":
        heard(child.number, value)
    elif word == "done":
        child.done = True
    else:
        child.trouble, child.may_retry = value, word == "died"
    return True


def _trouble(child: _Child) -> str:
    code = child.process.exitcode or 0
    died = f"it was killed by signal {-code}, perhaps for memory" if code < 0 else f"exit code {code}"
    return child.trouble or died


def _stop(running: Sequence[_Child]) -> None:
    """Ask every process to stop after the step in hand, and wait for their checkpoints."""
    for child in running:
        with suppress(OSError):
            child.pipe.send("stop")
    for child in running:
        while _listen(child, lambda *_: None):
            pass
        child.pipe.close()


def _work(pipe: Connection, job: Job) -> None:
    """In the process: do the job, and tell how it goes."""
    os.setpgrp()  # ctrl-C on the terminal is for the parent, who asks every process to stop once
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what waited is dropped: the parent asks by the pipe
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
    except (PushFailed, OSError) as error:  # a server or disk that comes back
        pipe.send(("died", str(error)))
    except SMNError as error:
        pipe.send(("failed", str(error)))
    except KeyboardInterrupt:
        pipe.send(("failed", "it was stopped"))
    except Exception:  # what nobody foresaw is told in full, where it can be read
        pipe.send(("died", traceback.format_exc()))


def _stop_when_told(pipe: Connection, overdue: threading.Event) -> None:
    """A message or the end of the parent, however it died, is ctrl-C here.

    One that falls into a destructor or callback of a library is lost there; the next step then stands in for it.
    """
    with suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(OVERDUE_S)
    overdue.set()
