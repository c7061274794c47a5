"""Copies between host and device. On a GPU they go through pinned memory while the device does something else."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

# A batch moves in this many parts: the host copies one to pinned memory while the device fetches the one before.
PARTS = 4


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one inside a block: Triton launches there, and new streams are its own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_device(array: ndarray, device: torch.device) -> Tensor:
    """Copy a host array to where the engine computes; the copy is complete when this returns. Safe on any thread.

    On a GPU the copy has a stream of its own, so that a forward can run meanwhile. Drop the copy only when no forward
    reads it any more, because the next copy takes its memory at once. That holds once `Engine.embed` has returned: it
    waits for the device.
    """
    host = torch.from_numpy(np.array(array))
    if device.type != "cuda":
        return host
    with current(device):
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            moved = host.pin_memory().to(device, non_blocking=True)
            stream.synchronize()
    return moved


class Staging:
    """Takes batches to a device and results back. Owned by one thread, one batch at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pinned: dict[str, Tensor] = {}

    def send(self, x: Float32[Tensor, "n 3 h w"], dtype: torch.dtype) -> Batch:
        """Send a batch on its way."""
        if self._stream is None or x.is_cuda:
            return Batch(x.to(self._device), dtype, None)
        there = torch.empty(x.shape, dtype=x.dtype, device=self._device)
        pinned = self._pin("batch", x)
        # The current stream may still use what had this memory before.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for here, staged, target in zip(x.chunk(PARTS), pinned.chunk(PARTS), there.chunk(PARTS), strict=True):
                staged.copy_(here)
                target.copy_(staged, non_blocking=True)
        return Batch(there, dtype, self._stream)

    def allocate(self, out: Float32[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
        """The tensor to write the embeddings into; `finish` brings them to `out`."""
        return out if self._stream is None else torch.empty(out.shape, dtype=out.dtype, device=self._device)

    def finish(self, result: Float32[Tensor, "n d"], out: Float32[Tensor, "n d"]) -> None:
        """Wait until the device is done, and bring the result to `out`."""
        if self._stream is not None:
            pinned = self._pin("result", out)
            pinned.copy_(result, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
            out.copy_(pinned)

    def _pin(self, name: str, like: Tensor) -> Tensor:
        """Pinned memory in the shape of a tensor; the largest so far is kept."""
        kept = self._pinned.get(name)
        if kept is None or kept.numel() < like.numel():
            kept = self._pinned[name] = torch.empty(like.numel(), dtype=like.dtype, pin_memory=True)
        return kept[: like.numel()].view(like.shape)


class Batch:
    """Images that are on their way to the device."""

    def __init__(self, x: Float32[Tensor, "n 3 h w"], dtype: torch.dtype, stream: torch.cuda.Stream | None) -> None:
        self._x, self._dtype, self._stream = x, dtype, stream

    @cached_property
    def rows(self) -> Float[Tensor, "n 3 h w"]:
        """The images in the model's type. Work that is queued after the first use waits for them to arrive."""
        if self._stream is not None:
            torch.cuda.current_stream(self._x.device).wait_stream(self._stream)
        return self._x.to(self._dtype)
