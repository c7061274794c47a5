"""Layouts, masks and linear layers for the tests of the kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from smn_core import bits
from smn_core.apply import reference
from smn_core.kernels.costs import CUDA, KernelCosts
from smn_core.kernels.devicemask import Plan
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


def plan_of(layout: Layout, costs: KernelCosts = CUDA) -> Plan:
    return Plan(layout, costs)


def random_mask(layout: Layout, density: float, seed: int) -> TaskMask:
    rng, packed = np.random.default_rng(seed), []
    for tensor in layout:
        on = rng.random(tensor.n_weights, np.float32) < density
        on[rng.integers(tensor.n_weights)] = True
        packed.append(bits.pack(on))
    return TaskMask(layout, "{}", "", np.concatenate(packed), digest="sha256:x")


def random_theta(layout: Layout, seed: int = 0) -> np.ndarray:
    theta, rng = np.zeros(layout.n_elements, np.float32), np.random.default_rng(seed)
    for tensor in layout:
        theta[tensor.elements] = rng.standard_normal(tensor.n_weights, np.float32)
    return theta


def masked(layout: Layout, theta: Tensor, mask: TaskMask | None, index: int) -> Tensor:
    """One tensor of theta' in float64, from the weights as they are stored."""
    tensor = layout.tensors[index]
    full = theta.float().numpy()
    flat = full if mask is None else reference(full, mask)
    return torch.from_numpy(flat[tensor.elements].copy()).double().view(tensor.shape)
