"""`smn` in processes of its own that begin in a second: forked from one that has imported what verbs import.

Nearly all of a start is importing torch, torchvision and timm, four seconds of a core. A process of the standard
library's `forkserver` does it once for each process of pytest; it has no threads then and has computed nothing. What
is about the start itself, what is imported, variables that are read at import (OMP_NUM_THREADS, HF_...), or the
commands of the README begins a real one.
"""

import atexit
import multiprocessing.util  # before the function below: what is registered later runs earlier
import os
import signal
import subprocess
import sys
from pathlib import Path

MODULES = [
    "smn.command", "service.app", "service.listen", "service.registry.redis", "smn_core.engine",
    "training.several.processes", "numba.typed", "scipy.linalg", "uvloop",
]  # fmt: skip
SMN = str(Path(sys.executable).parent / "smn")

_running = set()


class Preloaded:
    """A process that runs `smn` with these arguments; it has what is used here of `subprocess.Popen`."""

    def __init__(self, arguments, out, environment, folder):
        """`out` is the file that stdout and stderr are added to."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(MODULES)
        given = list(map(str, arguments)), str(out), dict(environment), str(folder)
        self._process = context.Process(target=_run, args=given)
        self._process.start()
        self.pid, self.returncode = self._process.pid, None
        _running.add(self)

    def poll(self):
        if self.returncode is None and (code := self._process.exitcode) is not None:
            self.returncode = code
            _running.discard(self)
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("smn", timeout)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@atexit.register
def _end_what_was_left():
    """multiprocessing would wait for it."""
    for process in list(_running):
        process.kill()


def _run(arguments, out, environment, folder):
    """In the child: be what the command line would have started."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    sys.argv = [SMN, *arguments]
    import smn

    try:
        smn.main()
    finally:
        atexit._run_exitfuncs()
