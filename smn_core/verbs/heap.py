"""Memory that a forward gives back stays with the process: the next one finds its pages there.

glibc returns large blocks to the system at once, and every forward then faults its activations in anew, page by page,
each zeroed by the kernel: a ResNet-50 with 32 images took 1.5 times as long (docs/decisions.md).
"""

from __future__ import annotations

import ctypes

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEEP_BELOW_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, for this process and before it starts threads; returns whether it does now.

    One arena for all threads: others hold no block above 64 MB, which would come from the system again. Where malloc is
    not glibc's (musl, macOS, jemalloc) nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    wanted = ((M_MMAP_THRESHOLD, KEEP_BELOW_BYTES), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    done = [mallopt(name, value) for name, value in wanted]
    return done == [1, 1, 1]
