"""The shared base: `y[i] = (x[i] @ W.T - x[i] @ (W * off[i]).T) / alpha[i] + b * on_b[i] / beta[i]` for many masks i.

`x @ W.T` is one product for the whole batch. What every mask takes away from it is a few hundred weights of a layer:
one compiled pass over the output subtracts them, scales and adds the bias, straight from the masks' OFF positions.
Where numba is missing masks run through products of their own instead (mixed.py); `correct_slowly` is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from smn_core.engine.mixed.compiled import compiled_correct
from smn_core.engine.mixed.lists import Lists, Rows
from smn_core.layout import Layout, MaskableTensor


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
        lists: Lists,
        weight: int,
        bias: int | Tensor | None,
        parts: slice = slice(None),
        block: int = 1,
    ) -> None:
        """Turn `out = x @ W.T` into every part's own output, in place.

        Args:
            out, x: contiguous rows of the parts `parts` of the batch, `block` for every row of the batch.
            weight: index of W in the layout; the masks list its OFF weights.
            bias: index of the bias in the layout, likewise listed; or a bias that is not maskable; or None.
        """
        assert self._kernel is not None
        at_bias = self._layout.tensors[bias] if isinstance(bias, int) else None
        table, scales = lists.table(parts, weight, bias if isinstance(bias, int) else None, block)
        values = _bias_values(self._theta, at_bias, bias, out.shape[1])
        first_weight = self._layout.tensors[weight].first_element
        first_bias = at_bias.first_element if at_bias is not None else 0
        fixed = (out.numpy(), x.numpy(), self._theta.numpy(), lists.off, table, scales, values, first_weight)
        if self._pool is None:
            self._kernel(*fixed, first_bias, 0, len(out))
            return
        cuts = np.linspace(0, len(out), self._threads + 1).astype(int).tolist()
        runs = [partial(self._kernel, *fixed, first_bias, *share) for share in pairwise(cuts)]
        others = [self._pool.submit(run) for run in runs[1:]]
        runs[0]()
        for other in others:
            other.result()


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
