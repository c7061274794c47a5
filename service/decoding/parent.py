"""The server's hold on the forker, the process that forks its decode workers: one for this process, while it lives."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

_FORKER = "service.decoding.forker"
_TOLD = (
    "OPENBLAS_NUM_THREADS=1",
    "MALLOC_ARENA_MAX=1",
    f"MALLOC_MMAP_THRESHOLD_={4 * 2**20}",
    f"MALLOC_TRIM_THRESHOLD_={32 * 2**20}",
)
"""A worker has one thread, and memory that it reserves and never uses would count against its limit. What a small image
takes stays with the worker: given back and taken again it would cost a third more processor time."""


class Forker:
    """Starts the process when it is first needed, and again where it ended. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self, wanted: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Fork a worker that gets the descriptors: a socket, and memory for its pixels.

        Raises:
            OSError: the process cannot be started.
        """
        with self._lock:
            message = json.dumps(wanted).encode()
            if self._control is None or not _send(self._control, message, descriptors):
                self._start()
                assert self._control is not None
                socket.send_fds(self._control, [message], descriptors)

    def kill(self, pid: int) -> None:
        """Kill a worker, if it has not ended."""
        with self._lock:
            if self._control is not None:
                _send(self._control, json.dumps({"kill": pid}).encode(), ())

    def end(self) -> None:
        """End the process, and all workers with it."""
        with self._lock:
            if self._control is not None:
                self._control.close()
                self._control = None
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None

    def _start(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)  # noqa: PTH109 - "" is where one is
        with theirs:
            self._process = subprocess.Popen(
                ["env", *_TOLD, f"PYTHONPATH={path}", sys.executable, "-m", _FORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )


def _send(control: socket.socket, message: bytes, descriptors: Sequence[int]) -> bool:
    """Whether the message went out: not if the process is gone."""
    try:
        socket.send_fds(control, [message], descriptors)
    except OSError:
        return False
    return True


FORKER = Forker()
atexit.register(FORKER.end)
