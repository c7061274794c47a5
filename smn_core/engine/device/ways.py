"""Which fast ways of computing a device allows, beyond torch's own operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from smn_core.engine.device.graphs import Capture, cuda_capture


@dataclass(frozen=True)
class Ways:
    """`kernels`: Triton's, where they work; `capture`: records forwards for Graphs, None where nothing does."""

    kernels: bool = False
    capture: Capture | None = None


def ways_of(device: torch.device) -> Ways:
    """All of them on a GPU, none elsewhere."""
    return Ways(True, cuda_capture(device)) if device.type == "cuda" else Ways()
