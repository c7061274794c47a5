"""A small process that has imported what decoding needs, and forks workers in milliseconds: `python -m` this module.

A server cannot fork itself: torch has threads by then, and gigabytes. It forks and kills for the server, which is not
the parent of the workers and could kill by a number that another process has by now. It ends when the server does.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import signal
import socket
import sys
import traceback

from PIL import AvifImagePlugin, Image

from service.decoding.worker import limit_self, work
from smn_core.pixels import PixelReader

MAX_MESSAGE_BYTES = 8192


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    # They come to a whole group of processes; workers end when the server says so, after its drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    gc.freeze()  # so that a worker's collections do not touch, and so copy, what it shares with this process
    serve(control)


def serve(control: socket.socket) -> None:
    """Fork a worker for each message with descriptors, kill one for each with a process id, until the server ends."""
    children: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 2)
        if not message:
            return
        _reap(children)
        wanted = json.loads(message)
        if not descriptors:
            if wanted["kill"] in children:
                os.kill(wanted["kill"], signal.SIGKILL)
            continue
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            control.close()
            _be_worker(wanted, descriptors, parent)
        children.add(child)
        for descriptor in descriptors:
            os.close(descriptor)


def _be_worker(wanted: dict[str, object], descriptors: list[int], parent: int) -> None:
    """Decode until the end of this process. Never returns."""
    try:
        channel, memory = socket.socket(fileno=descriptors[0]), descriptors[1]
        read = PixelReader(wanted["preprocess"], wanted["max_pixels"])  # type: ignore[arg-type]
        shared = mmap.mmap(memory, os.fstat(memory).st_size)
        limit_self(wanted["memory_bytes"], parent)  # type: ignore[arg-type]
        work(channel, shared, read)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server is gone
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


def _reap(children: set[int]) -> None:
    """Take leave of those that ended. Until then nobody else gets their process id."""
    while children:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)


if __name__ == "__main__":
    main()
