"""Copies between host and device: pinned, and beside what the device is doing meanwhile."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

# Rows of a batch move in this many parts: the host stages one while the device fetches the one before.
PARTS = 4


def to_device(array: ndarray, device: torch.device) -> Tensor:
    """A copy of a host array where the engine computes, complete when this returns. Safe on any thread.

    On a GPU it moves on a stream of its own, beside the forward that may be running.
    """
    host = torch.from_numpy(np.array(array))
    if device.type != "cuda":
        return host.to(device)
    stream = copies(device)
    with torch.cuda.stream(stream):
        moved = host.pin_memory().to(device, non_blocking=True)
        stream.synchronize()
    return moved


@cache
def copies(device: torch.device) -> torch.cuda.Stream:
    """The stream that masks come on; memory taken on it is given to others only on it."""
    return torch.cuda.Stream(device)
