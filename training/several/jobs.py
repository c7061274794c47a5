"""A job is one run of several, and perhaps the upload of its mask; `work` does one job.

`smn push` uploads the mask in a process of its own, because training knows no HTTP and imports nothing of the service.
A key is written as `env:NAME`. That process alone reads the environment variable, on the machine where it runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from smn_core.errors import InvalidArgument, SMNError
from smn_core.files import write_bytes
from training.plan import PUSHED
from training.request import Request
from training.run import train
from training.watch import OnStep

LOCAL = "http://127.0.0.1:8000"
PUSH_S = 600.0
ASK_S = 120.0


class PushFailed(SMNError):
    """A mask is finished but could not be uploaded. Its file stays where the run wrote it."""

    code = "push_failed"


@dataclass(frozen=True)
class Push:
    """Where a finished mask is uploaded, and under which name. `key` is `env:NAME`, or "" for a server without keys."""

    name: str
    server: str = LOCAL
    key: str = ""


@dataclass(frozen=True)
class Job:
    """A run, and perhaps an upload of its mask.

    `threads` are torch's, 0 for the default of whoever runs the job. `trained`: the run is finished, only the upload is
    left.
    """

    request: Request
    push: Push | None = None
    threads: int = 0
    trained: bool = False


OnJobStep = Callable[[int, int], None]
"""Called with the number of a job and the number of steps that its run has done."""


def sum_steps(advance: Callable[[int], None]) -> OnJobStep:
    """Make a callback for many jobs that moves one bar: `advance` is called with the number of new steps."""
    steps_of: dict[int, int] = {}

    def on_step(number: int, step: int) -> None:
        advance(step - steps_of.get(number, 0))
        steps_of[number] = step

    return on_step


@runtime_checkable
class FanOut(Protocol):
    """Runs jobs, perhaps side by side, and returns the reason of each job that failed, by the job's number.

    With `keep_going` the other jobs go on when one fails. Without it the first failure stops the others, which write a
    checkpoint each, and is raised.

    Raises:
        RunFailed: a job failed, without `keep_going`.
        KeyboardInterrupt: ctrl-C; every run that had begun wrote a checkpoint.
    """

    def __call__(self, jobs: Sequence[Job], on_step: OnJobStep, *, keep_going: bool = False) -> dict[int, str]: ...


class RunFailed(SMNError):
    """A run failed. The other runs were stopped, and each wrote a checkpoint."""

    code = "run_failed"


def work(job: Job, on_step: OnStep) -> None:
    """Do a job in this process: train, then upload.

    Raises:
        SMNError: as `train`.
        PushFailed: the mask is finished, but the server did not take it.
    """
    if not job.trained:
        train(job.request, on_step)
    if job.push is not None:
        done = _run_smn("push", job.request.out, "--name", job.push.name, *_write_flags(job.push), timeout_s=PUSH_S)
        record = {**asdict(job.push), "digest": done["digest"], "version": done["version"]}
        write_bytes(job.request.folder / PUSHED, json.dumps(record).encode())


def is_pushed(out: Path, folder: Path, push: Push) -> bool:
    """Whether the present file at `out` was uploaded to the server and the name of `push`."""
    from smn_core.tensorfile import digest_of

    try:
        record = json.loads((folder / PUSHED).read_text())
    except (OSError, ValueError):
        return False
    wanted = {"name": push.name, "server": push.server, "digest": digest_of(out.read_bytes())}
    return all(record.get(key) == value for key, value in wanted.items())


def require_server(push: Push) -> None:
    """Check that the server answers and accepts the key, before hours of training rather than after them.

    Raises:
        PushFailed: it does not.
    """
    _run_smn("list", *_write_flags(push), timeout_s=ASK_S)


def require_key_by_name(key: str) -> None:
    """Refuse a key that is written out: a manifest names an environment variable instead.

    Raises:
        InvalidArgument: the key is not of the form `env:NAME`.
    """
    if key and not (key.startswith("env:") and key.removeprefix("env:").isidentifier()):
        raise InvalidArgument('a key does not belong in a manifest: write key = "env:NAME", an environment variable')


def _write_flags(push: Push) -> list[str]:
    return ["--server", push.server, *(["--key", push.key] if push.key else [])]


def _run_smn(*words: str | Path, timeout_s: float) -> Any:
    command = [sys.executable, "-m", "smn", *map(str, words), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise PushFailed(f"smn {words[0]}: no answer within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PushFailed(f"smn {words[0]}: {said[-1].removeprefix('smn: error: ')}")
    return json.loads(done.stdout)
