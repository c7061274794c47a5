"""One run of several: what it learns, where the mask goes then, and how that is told to whoever waits.

A mask is uploaded by the `smn push` of this environment, in a process of its own: training knows no HTTP and imports
nothing of the service. A key is `env:NAME` and is looked up by that process, where it runs; it is never passed on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from smn_core.errors import InvalidArgument, SMNError
from smn_core.files import write_bytes
from training.plan import PUSHED
from training.request import Request
from training.run import train

LOCAL = "http://127.0.0.1:8000"
PUSH_S = 600.0
ASK_S = 120.0


class PushFailed(SMNError):
    """A finished mask that could not be uploaded; it lies where its run wrote it."""

    code = "push_failed"


@dataclass(frozen=True)
class Push:
    """Where a finished mask goes: its name on a server. `key` is `env:NAME`, or "" for a server that wants none."""

    name: str
    server: str = LOCAL
    key: str = ""


@dataclass(frozen=True)
class Job:
    """A run, which resumes what is there of it, and perhaps an upload. `trained`: only the upload is left."""

    request: Request
    push: Push | None = None
    threads: int = 0
    trained: bool = False


Heard = Callable[[int, int], None]
"""Called with the number of a job and its steps done."""


def total_of(progress: Callable[[int], None]) -> Heard:
    """Feeds one bar, which is told how many more are done, from many jobs, which tell how many they have done."""
    steps_of: dict[int, int] = {}

    def heard(number: int, step: int) -> None:
        progress(step - steps_of.get(number, 0))
        steps_of[number] = step

    return heard


class FanOut(Protocol):
    """Runs jobs side by side; returns why some failed, by number.

    With `keep_going` a job that fails costs no other; without, it stops them, each with a checkpoint, and is raised.

    Raises:
        RunFailed: a job failed.
        KeyboardInterrupt: ctrl-C; every run that had begun wrote a checkpoint.
    """

    def __call__(self, jobs: Sequence[Job], heard: Heard, *, keep_going: bool = False) -> dict[int, str]: ...


class RunFailed(SMNError):
    """One of the runs did not end well; the others were stopped with a checkpoint."""

    code = "run_failed"


def work(job: Job, heard: Callable[[int], None]) -> None:
    """Do a job in this process.

    Raises:
        SMNError: as `train`.
        PushFailed: the mask is finished, the server did not take it.
    """
    if not job.trained:
        train(job.request, heard)
    if job.push is not None:
        done = _smn("push", job.request.out, "--name", job.push.name, *_where(job.push), timeout_s=PUSH_S)
        record = {**asdict(job.push), "digest": done["digest"], "version": done["version"]}
        write_bytes(job.request.folder / PUSHED, json.dumps(record).encode())


def is_pushed(out: Path, folder: Path, push: Push) -> bool:
    """Whether the mask at `out`, as it is now, was uploaded as `push` says."""
    from smn_core.tensorfile import digest_of

    try:
        record = json.loads((folder / PUSHED).read_text())
    except (OSError, ValueError):
        return False
    wanted = {"name": push.name, "server": push.server, "digest": digest_of(out.read_bytes())}
    return all(record.get(key) == value for key, value in wanted.items())


def require_server(push: Push) -> None:
    """Ask now, not after hours of training, whether the server answers and knows the key.

    Raises:
        PushFailed: it does not.
    """
    _smn("list", *_where(push), timeout_s=ASK_S)


def require_key_by_name(key: str) -> None:
    """Keys stay in the environment.

    Raises:
        InvalidArgument: it is not written as `env:NAME`.
    """
    if key and not (key.startswith("env:") and key.removeprefix("env:").isidentifier()):
        raise InvalidArgument('a key does not belong in a manifest: write key = "env:NAME", an environment variable')


def _where(push: Push) -> list[str]:
    return ["--server", push.server, *(["--key", push.key] if push.key else [])]


def _smn(*words: str | Path, timeout_s: float) -> Any:
    command = [sys.executable, "-m", "smn", *map(str, words), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise PushFailed(f"smn {words[0]}: no answer within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PushFailed(f"smn {words[0]}: {said[-1].removeprefix('smn: error: ')}")
    return json.loads(done.stdout)
