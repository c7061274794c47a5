"""Memory that is freed stays with the process, whatever thread freed it."""

import subprocess
import sys

import pytest

from smn_core.verbs.heap import KEEP_BELOW_BYTES, keep_freed_memory

BLOCKS, BLOCK_BYTES = 20, 100 * 2**20
# Page faults of blocks that a thread takes, touches and frees, one after the other, as forwards do.
COUNT = f"""
import ctypes, resource, sys, threading
from smn_core.verbs.heap import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)

def forwards():
    for _ in range({BLOCKS}):
        block = libc.malloc(ctypes.c_size_t({BLOCK_BYTES}))
        ctypes.memset(block, 1, {BLOCK_BYTES})
        libc.free(block)

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=forwards)
thread.start()
thread.join()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
    kept, n = done.stdout.split()
    return int(kept), int(n)


def test_blocks_are_faulted_in_once_and_not_at_every_use():
    assert BLOCK_BYTES < KEEP_BELOW_BYTES
    kept, few = faults("keep")
    if not kept:
        pytest.skip("this malloc is not glibc's")
    _, many = faults("leave")
    assert few < 2 * BLOCK_BYTES / 4096
    assert many > 5 * few


def test_a_malloc_that_cannot_be_told_is_left_alone(monkeypatch):
    class Other:
        def __init__(self, *_):
            pass

    monkeypatch.setattr("ctypes.CDLL", Other)
    assert not keep_freed_memory()
