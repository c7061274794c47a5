"""Captured forwards: a GPU records the launches of a forward once, and replays them without the model's Python.

A capture reads and writes fixed addresses. So there is one for each size of batch and each place that weights lie in:
theta, a slot, or the table of a batch that mixes masks. The contents of a place may change between replays; its address
may not. A batch is filled up to the next size with whatever the input held, since rows do not see each other.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from smn_core.backbone import Backbone

LOG = logging.getLogger("smn.engine")
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Records a forward over fixed tensors and returns its replay; each replay overwrites the result of the last one."""

# Up to this size launching costs more than computing; larger batches run as they are.
MAX_IMAGES = 64
# Graphs share one pool of memory for activations; each keeps its nodes, some hundred kilobytes.
MAX_GRAPHS = 256
WARM_UPS = 2


class Graphs:
    """The captured forwards of one model. Owned by one thread.

    Args:
        image_shape, dtype, device: of the model's input.
    """

    def __init__(
        self, image_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, capture: Capture
    ) -> None:
        self._input = torch.zeros(MAX_IMAGES, *image_shape, dtype=dtype, device=device)
        self._capture = capture
        self._replays: OrderedDict[tuple[Hashable, int], Callable[[], Tensor]] = OrderedDict()
        self._seen: set[tuple[Hashable, int]] = set()
        self._broken = False

    def size_for(self, x: Tensor) -> int | None:
        """The size that a batch is filled up to; None where it runs as it is."""
        n_images = len(x)
        if self._broken or n_images > MAX_IMAGES or x.shape[1:] != self._input.shape[1:]:
            return None
        step = 1 if n_images <= 2 else 4 if n_images <= 16 else 8
        return -(-n_images // step) * step

    def run(
        self, place: Hashable, x: Tensor, wear: Callable[[], object], forward: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`forward(x)` through the weights of a place. The result is valid until the next run.

        The first batch of a size at a place runs as it is, the second is captured, all others are replayed.

        Args:
            wear: makes the model find the weights of the place.
        """
        size = self.size_for(x)
        if size is None:
            wear()
            return forward(x)
        whole, key = self._input[:size], (place, size)
        whole[: len(x)] = x
        if key not in self._replays:
            wear()
            if key not in self._seen:
                self._seen.add(key)
                return forward(whole)[: len(x)]
            if not self._record(key, lambda: forward(whole)):
                return forward(whole)[: len(x)]
        self._replays.move_to_end(key)
        return self._replays[key]()[: len(x)]

    def _record(self, key: tuple[Hashable, int], forward: Callable[[], Tensor]) -> bool:
        try:
            self._replays[key] = self._capture(forward)
        except Exception as error:  # a model may wait for the device, copy to the host, or choose by what it computes
            LOG.warning("forwards run without graphs: %s", (str(error).splitlines() or [type(error).__name__])[0])
            self._broken = True
            self._replays.clear()
            return False
        if len(self._replays) > MAX_GRAPHS:
            self._replays.popitem(last=False)
        return True


def graphs_for(backbone: Backbone, capture: Capture | None) -> Graphs | None:
    """The captured forwards of a backbone; None where they cannot be captured."""
    if capture is None:
        return None
    return Graphs(tuple(backbone.preprocess["input_size"]), backbone.dtype, backbone.device, capture)


def cuda_capture(device: torch.device) -> Capture:
    """Capture into CUDA graphs that share one pool: they never run at the same time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        # What libraries and kernels set up at their first call must not be captured.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                forward()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on copying masks to the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = forward()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return capture
