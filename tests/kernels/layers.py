"""Layouts, masks and linear layers for the tests of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from smn_core.engine.apply import apply_slowly
from smn_core.engine.kernelmask import CUDA, KernelCosts, KernelLayout
from smn_core.layout import Layout, MaskableTensor
from smn_core.mask import TaskMask

CPU = torch.device("cpu")
LISTS, NO_LISTS = KernelCosts(unpack=1.0, entry=0.0), KernelCosts(unpack=0.0, entry=1.0)


def layout_of_shapes(shapes: list[tuple[int, ...]]) -> Layout:
    tensors, first_byte = [], 0
    for i, shape in enumerate(shapes):
        tensors.append(MaskableTensor(f"t{i}", shape, first_byte))
        first_byte += tensors[-1].n_bytes
    return Layout(tuple(tensors), {}, 1)


def kernel_layout_of(layout: Layout, costs: KernelCosts = CUDA) -> KernelLayout:
    return KernelLayout(layout, costs)


def masked(layout: Layout, theta: Tensor, mask: TaskMask | None, index: int) -> Tensor:
    """One tensor of theta' in float64, from the weights as they are stored."""
    tensor = layout.tensors[index]
    full = theta.float().numpy()
    flat = full if mask is None else apply_slowly(full, mask)
    return torch.from_numpy(flat[tensor.elements].copy()).double().view(tensor.shape)
