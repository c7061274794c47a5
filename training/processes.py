"""Several runs of training side by side: one process each, up to as many at once as there are devices or cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from smn_core.errors import InvalidArgument, SMNError
from training.request import Request
from training.run import train

Heard = Callable[[int, int], None]
"""Called with the number of a run and its steps done."""


class RunFailed(SMNError):
    """One of the runs did not end well; the others were stopped with a checkpoint."""

    code = "run_failed"


@dataclass
class _Child:
    number: int
    process: BaseProcess
    pipe: Connection
    device: str
    done: bool = False
    trouble: str = ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def default_processes(n_runs: int, device: str) -> int:
    """Runs at once: one a GPU, or one a core."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return max(1, min(n_runs, torch.cuda.device_count() if on_gpu else cores()))


def train_all(requests: Sequence[Request], heard: Heard, processes: int, threads: int) -> None:
    """Run every request; each writes its own output. One at a time stays in this process.

    Args:
        threads: torch's threads of each run; 0 shares the cores out.

    Raises:
        SMNError: as `train`, or RunFailed for a process that died; the other runs were stopped and can be resumed.
        KeyboardInterrupt: ctrl-C; every run that had begun wrote a checkpoint.
    """
    if processes < 1:
        raise InvalidArgument(f"--processes {processes}: at least 1")
    processes = min(processes, len(requests))
    if processes <= 1:
        for number, request in enumerate(requests):
            train(request, lambda step, number=number: heard(number, step))  # type: ignore[misc]
        return
    threads = threads or max(1, cores() // processes)
    free = _devices(requests[0].spec.device, processes)
    waiting, running = list(enumerate(requests)), list[_Child]()
    try:
        while waiting or running:
            while waiting and free:
                number, request = waiting.pop(0)
                running.append(_start(number, request, free.pop(0), threads))
            for pipe in wait([child.pipe for child in running]):
                child = next(child for child in running if child.pipe is pipe)
                if not _listen(child, heard):
                    running.remove(child)
                    free.append(child.device)
                    _require_done(child)
    finally:
        _stop(running)


def _devices(device: str, n: int) -> list[str]:
    """A device for every process: the GPUs in turn, or the one that was named."""
    if device in ("cuda", "auto") and torch.cuda.is_available():
        return [f"cuda:{i % torch.cuda.device_count()}" for i in range(n)]
    return [device] * n


def _start(number: int, request: Request, device: str, threads: int) -> _Child:
    context = multiprocessing.get_context("spawn")  # a fork would take over torch's threads half-way
    ours, theirs = context.Pipe()
    request = replace(request, spec=replace(request.spec, device=device))
    process = context.Process(target=_work, args=(theirs, request, threads), name=f"smn-run-{number + 1}")
    process.start()
    theirs.close()
    return _Child(number, process, ours, device)


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
        child.trouble = value
    return True


def _require_done(child: _Child) -> None:
    child.pipe.close()
    if child.done:
        return
    code = child.process.exitcode or 0
    died = f"it was killed by signal {-code}, perhaps for memory" if code < 0 else f"exit code {code}"
    raise RunFailed(f"run {child.number + 1}: {child.trouble or died}")


def _stop(running: Sequence[_Child]) -> None:
    """Ask every process to stop after the step in hand, and wait for their checkpoints."""
    for child in running:
        with suppress(OSError):
            child.pipe.send("stop")
    for child in running:
        while _listen(child, lambda *_: None):
            pass
        child.pipe.close()


def _work(pipe: Connection, request: Request, threads: int) -> None:
    """In the process: run, and tell how it goes."""
    os.setpgrp()  # ctrl-C on the terminal is for the parent, who asks every process to stop once
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_stop_when_told, args=(pipe,), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        train(request, lambda step: pipe.send(("step", step)))
        pipe.send(("done", None))
    except (SMNError, OSError) as error:
        pipe.send(("failed", str(error)))
    except KeyboardInterrupt:
        pipe.send(("stopped", "it was stopped"))
    except Exception:  # what nobody foresaw is told in full, where it can be read
        pipe.send(("failed", traceback.format_exc()))


def _stop_when_told(pipe: Connection) -> None:
    """A message or the end of the parent, however it died, is ctrl-C here."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGINT)
