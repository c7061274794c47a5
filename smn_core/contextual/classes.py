"""The class of a weight: its sign, its size among all of its tensor, and how far it stands above its row and column.

Coder and decoder must agree on every class, so all of it is whole numbers. The bits of a float32 without its sign are,
but for a factor, a logarithm of its size that is a little off between powers of two: 256 steps are an octave.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor

from smn_core.layout import Layout, MaskableTensor

Classes = Callable[[MaskableTensor], UInt8[ndarray, "n"]]
"""The class of every weight of a maskable tensor, flat, in C order."""


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor: its first dimension, and the product of the others."""
    return shape[0], prod(shape[1:])


def classes_of(weights: Tensor) -> UInt8[ndarray, "n"]:
    """Bits 0-3: above row and column; 4-6: size in the tensor; 7: sign. docs/formats.md has the formula."""
    from smn_core.contextual.loop import compile_loop  # numba takes longer to import than a verb should to start

    values = weights.detach().to("cpu", torch.float32).contiguous().numpy()
    bits = np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint32)
    found = np.empty(bits.size, np.uint8)
    compile_loop("class_weights")(bits, *as_matrix(tuple(weights.shape)), found)
    return found


class Theta:
    """The maskable weights of a backbone wherever they lie, for the classes that codec `context` needs.

    Weights in float32 stay where they are, and are classed each time: it takes as long as to copy them. Those that
    will be rounded to a narrower type are classed at once, a byte a weight, since rounding would change classes.
    """

    def __init__(self, parameters: Mapping[str, Tensor], layout: Layout, *, rounded: bool) -> None:
        self._lock = threading.Lock()
        self._kept = {t.name: classes_of(parameters[t.name]) for t in layout} if rounded else None
        self._weights = {} if rounded else {t.name: parameters[t.name].detach() for t in layout}

    def move(self, views: Mapping[str, Tensor]) -> None:
        """Use these equal tensors from now on, so that nobody keeps the memory of the former ones."""
        with self._lock:
            self._weights = {name: views[name].detach() for name in self._weights}

    def __call__(self, tensor: MaskableTensor) -> UInt8[ndarray, "n"]:
        if self._kept is not None:
            return self._kept[tensor.name]
        with self._lock:
            weights = self._weights[tensor.name]
        return classes_of(weights)
