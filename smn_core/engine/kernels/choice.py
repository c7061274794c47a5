"""Whether the kernels can be used here: triton may be missing, its compiler, or a GPU that it knows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from smn_core.engine.apply import Applier, TorchApplier
from smn_core.engine.compact import make_compact
from smn_core.engine.kernelmask import CUDA, KernelLayout
from smn_core.engine.kernels.table import Table
from smn_core.engine.sample import half_mask
from smn_core.errors import InvalidArgument
from smn_core.layout import Layout

if TYPE_CHECKING:
    from smn_core.engine.kernels.linear import Layer

LOG = logging.getLogger("smn.engine")


@dataclass(frozen=True)
class Kernels:
    """The kernels for one backbone: what masks are prepared for, what writes theta', what runs a linear layer."""

    kernel_layout: KernelLayout
    applier: Applier
    linear: Callable[[Tensor, Layer, KernelLayout, Table, int], Tensor]
    layer: type[Layer]


def load_kernels(theta: Float[Tensor, "n_elements"], layout: Layout) -> Kernels | None:
    """The kernels, tried out on one mask; None, with the reason logged, where that fails."""
    try:
        from smn_core.engine.kernels.linear import Layer, shared_base
        from smn_core.engine.kernels.unpack import KernelApplier

        if layout.n_elements >= 2**31:
            raise InvalidArgument(f"{layout.n_elements} weights are more than their positions in 32 bits reach")
        kernels = Kernels(KernelLayout(layout, CUDA), KernelApplier(theta, layout), shared_base, Layer)
        _try_out(kernels, theta, layout)
    except Exception as error:  # compilers and drivers fail in many ways; each of them means to do without
        reason = (str(error).splitlines() or [""])[0]
        LOG.warning("torch's operations instead of Triton's kernels: %s: %s", type(error).__name__, reason)
        return None
    return kernels


def _try_out(kernels: Kernels, theta: Tensor, layout: Layout) -> None:
    """Write theta' of one mask by the kernel and by torch, and compare.

    Raises:
        RuntimeError: they differ.
    """
    mask = make_compact(half_mask(layout), theta.device, kernels.kernel_layout)
    found, expected = torch.zeros_like(theta), torch.zeros_like(theta)
    kernels.applier.write(mask, found)
    TorchApplier(theta, layout).write(mask, expected)
    if not torch.allclose(found, expected, rtol=2 * torch.finfo(theta.dtype).eps, atol=0):
        raise RuntimeError("the kernel writes other weights than torch")
