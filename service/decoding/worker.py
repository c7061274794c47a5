"""A process that decodes: image bytes come in by a socket, pixels go out in shared memory. It imports no torch.

The kernel ends it where an image takes more processor time than it may (SIGPROF), also in native code that holds the
interpreter; memory beyond its limit is refused to it; and it never outlives the process that forked it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from smn_core.errors import ImageTooLarge, InvalidImage
from smn_core.pixels import PixelReader, Slow

ASKED = struct.Struct("<Id?")
"""Before each image: its bytes, the seconds of processor time that it may take, whether only if it is quick."""
ANSWER = struct.Struct("<BH")
"""Before each answer: what came of it, and the bytes of the text that follows: a process id, or an error."""
STARTED, DONE, SLOW, INVALID, TOO_LARGE = range(5)
MAX_TEXT_BYTES = 4000
_PR_SET_PDEATHSIG = 1
_MEMORY_KILLER_PREFERS = "500"


def limit_self(memory_bytes: int, parent: int) -> None:
    """Set the limits of this process: memory beyond what it has now, no core file, no life without its parent."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be named
        os._exit(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where /proc cannot be written: the kernel then chooses by size
        Path("/proc/self/oom_score_adj").write_text(_MEMORY_KILLER_PREFERS)


def work(channel: socket.socket, shared: mmap.mmap, read: PixelReader) -> None:
    """Decode until the other side closes, or one image was decoded that is not quick: its memory goes with the process.

    The pixels of an image, uint8 [h, w, 3], are in `shared` when its answer is sent.
    """
    height, width = read.input_px
    pixels = np.frombuffer(shared, np.uint8, height * width * 3).reshape(height, width, 3)
    _answer(channel, STARTED, str(os.getpid()))
    only_quick = True
    while only_quick and (head := _receive(channel, ASKED.size)):
        n_bytes, cpu_s, only_quick = ASKED.unpack(head)
        data = _receive(channel, n_bytes)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            pixels[...] = np.asarray(read(data, only_quick=only_quick))
        except Slow:
            kind, text = SLOW, ""
        except ImageTooLarge as error:
            kind, text = TOO_LARGE, str(error)
        except InvalidImage as error:
            kind, text = INVALID, str(error)
        except MemoryError:
            kind, text = TOO_LARGE, "the image takes more memory than its decode may have"
        except Exception as error:
            kind, text = INVALID, f"the image cannot be decoded: {error}"
        else:
            kind, text = DONE, ""
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(channel, kind, text)


def _receive(channel: socket.socket, n_bytes: int) -> bytes:
    """Bytes from the server; none where it closed."""
    data = channel.recv(n_bytes, socket.MSG_WAITALL) if n_bytes else b""
    if len(data) < n_bytes and data:
        sys.exit(0)
    return data


def _answer(channel: socket.socket, kind: int, text: str) -> None:
    said = text.encode("utf-8", "backslashreplace")[:MAX_TEXT_BYTES]
    channel.sendall(ANSWER.pack(kind, len(said)) + said)
