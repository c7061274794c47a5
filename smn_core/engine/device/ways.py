"""Which fast ways to compute a device allows, beyond torch's own operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from smn_core.engine.device.graphs import Capture, cuda_capture


@dataclass(frozen=True)
class Ways:
    """What an engine may use.

    Attributes:
        kernels: Triton's kernels, if they work.
        capture: records a forward for `Graphs`; None where forwards run as they are.
    """

    kernels: bool = False
    capture: Capture | None = None


def find_ways(device: torch.device) -> Ways:
    """All ways on a GPU, none elsewhere."""
    return Ways(True, cuda_capture(device)) if device.type == "cuda" else Ways()
