"""The spans of a batch as the kernels read them, in fixed memory on the device: a captured graph serves any masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smn_core.engine.kernelmask import KernelMask

# A row: the span's first image, and the addresses of its mask's packed bits, scales, off and cuts; 0 for the root.
WIDTH = 5


class Table:
    """`rows[i]` is span i; the rows behind the last span begin where the batch ends. Owned by one thread.

    Args:
        capacity: the most spans.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        # One more for images that only fill a batch up; the kernels want a power of two.
        self.n_spans = 1 << capacity.bit_length()
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(self.n_spans + 1, WIDTH, dtype=torch.int64, pin_memory=on_gpu)
        self.rows = self._host.to(device, copy=True)

    def fill(self, spans: Sequence[tuple[int, KernelMask | None]], n_images: int) -> None:
        """Take the spans of the next batch, by their first image; queued on the current stream.

        The last batch must be done: its rows are overwritten here at once.
        """
        rows = self._host.numpy()
        rows[:] = 0
        rows[:, 0] = n_images
        for i, (start, mask) in enumerate(spans):
            rows[i] = (start, *(mask.addresses if mask is not None else (0, 0, 0, 0)))
        self.rows.copy_(self._host, non_blocking=True)
