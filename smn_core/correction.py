"""The shared base: `y[i] = (x[i] @ W.T - x[i] @ (W * off[i]).T) / alpha[i] + b * on_b[i] / beta[i]` for many masks i.

`x @ W.T` is one product for the whole batch. What every mask takes away from it is a few hundred weights of a layer:
one compiled pass over the output subtracts them, scales and adds the bias, straight from the masks' OFF positions.
Where numba is missing masks run through products of their own instead (mixed.py); `correct_slowly` is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor

from smn_core.compiled import compiled_correct
from smn_core.layout import Layout, MaskableTensor
from smn_core.resident import Resident


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a layer's input through a mask; None is the root."""

    start: int
    stop: int
    bits: Resident | None


class Corrector:
    """Corrects the products of linear layers. Owned by one thread. Compiling takes a second: only where `wanted`."""

    def __init__(
        self, theta: Float[Tensor, "n_elements"], layout: Layout, threads: int = 1, wanted: bool = True
    ) -> None:
        self._theta, self._layout, self._threads = theta, layout, threads
        usable = wanted and theta.device.type == "cpu" and theta.dtype == torch.float32 and layout.n_elements < 2**31
        self._kernel: Callable[..., None] | None = compiled_correct() if usable else None
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="smn-correct") if threads > 1 else None

    @property
    def available(self) -> bool:
        return self._kernel is not None

    def correct(
        self,
        out: Float[Tensor, "r o"],
        x: Float[Tensor, "r i"],
        parts: Sequence[Rows],
        weight: int,
        bias: int | Tensor | None,
    ) -> None:
        """Turn `out = x @ W.T` into every part's own output, in place.

        Args:
            out, x: contiguous rows, which the parts cover in order.
            weight: index of W in the layout; the masks list its OFF weights.
            bias: index of the bias in the layout, likewise listed; or a bias that is not maskable; or None.
        """
        assert self._kernel is not None
        at_weight = self._layout.tensors[weight]
        at_bias = self._layout.tensors[bias] if isinstance(bias, int) else None
        table, scales, off = _table(parts, weight, bias if isinstance(bias, int) else None)
        values = _bias_values(self._theta, at_bias, bias, out.shape[1])
        fixed = (out.numpy(), x.numpy(), self._theta.numpy(), off, table, scales, values, at_weight.first_element)
        first_bias = at_bias.first_element if at_bias is not None else 0
        cuts = np.linspace(parts[0].start, parts[-1].stop, self._threads + 1).astype(int).tolist()
        runs = [partial(self._kernel, *fixed, first_bias, *share) for share in pairwise(cuts)]
        others = [self._pool.submit(run) for run in runs[1:]] if self._pool else []
        runs[0]()
        for other in others:
            other.result()


def _table(
    parts: Sequence[Rows], weight: int, bias: int | None
) -> tuple[Int64[ndarray, "p 6"], Float32[ndarray, "p 2"], ndarray]:
    """Per part: rows, where its OFF weights and OFF biases lie in the third value; its two scales."""
    table, scales = np.zeros((len(parts), 6), np.int64), np.ones((len(parts), 2), np.float32)
    lists: list[ndarray] = []
    length = 0
    for number, part in enumerate(parts):
        edges = [length] * 4
        if part.bits is not None:
            for column, tensor in enumerate((weight, bias)):
                if tensor is None:
                    continue
                off = part.bits.off_of(tensor).numpy()
                scales[number, column] = part.bits.scales[tensor]
                edges[2 * column] = length
                length += len(off)
                edges[2 * column + 1] = length
                lists.append(off)
        table[number] = (part.start, part.stop, *edges)
    off = np.concatenate(lists) if lists else np.zeros(0, np.int32)
    return table, scales, off.astype(np.int32, copy=False)


def _bias_values(
    theta: Float[Tensor, "n_elements"], at: MaskableTensor | None, bias: int | Tensor | None, n_out: int
) -> Float32[ndarray, "o"]:
    if at is not None:
        return theta[at.elements].numpy()
    return bias.numpy() if isinstance(bias, Tensor) else np.zeros(n_out, np.float32)


def correct_slowly(
    x: Float[Tensor, "r i"],
    parts: Sequence[Rows],
    weight: tuple[int, Float[Tensor, "o i"], int],
    bias: tuple[int, Float[Tensor, "o"], int],
) -> Float[Tensor, "r o"]:
    """What `correct` makes of `x @ W.T`, the obvious way. Both tensors: index in the layout, theta, first element."""
    found = []
    for part in parts:
        worn = []
        for tensor, theta, first in (weight, bias):
            flat = theta.clone().flatten()
            if part.bits is not None:
                flat[part.bits.off_of(tensor).long() - first] = 0
                flat *= float(part.bits.scales[tensor])
            worn.append(flat.view(theta.shape))
        found.append(torch.nn.functional.linear(x[part.start : part.stop], *worn))
    return torch.cat(found)
