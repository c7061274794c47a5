"""The shared base: one product with the root's weights for all rows of a linear layer, corrected for every mask.

    y[i] = (x[i] @ W.T - x[i] @ (W * off[i]).T) / alpha[i] + b * on_b[i] / beta[i]     for the rows i of every mask

A mask takes only a few hundred weights of a layer away from `x @ W.T`. One compiled pass over the output subtracts
their part, scales, and adds the bias; it reads the masks' OFF positions as they are kept. Without numba, masks run
products of their own instead (mixed.py). `correct_slowly` is the reference that tests compare with.
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

from smn_core.engine.mixed.compiled import compile_correct
from smn_core.engine.mixed.lists import Lists
from smn_core.engine.span import Span
from smn_core.layout import Layout, MaskableTensor


class Corrector:
    """Corrects the products of linear layers. Owned by one thread.

    Args:
        wanted: False leaves out the compiling, which takes a second; then nothing is available.
    """

    def __init__(
        self, theta: Float[Tensor, "n_elements"], layout: Layout, threads: int = 1, wanted: bool = True
    ) -> None:
        self._theta, self._layout, self._threads = theta, layout, threads
        usable = wanted and theta.device.type == "cpu" and theta.dtype == torch.float32 and layout.n_elements < 2**31
        self._kernel: Callable[..., None] | None = compile_correct() if usable else None
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
        which: slice = slice(None),
        block: int = 1,
    ) -> None:
        """Turn `out = x @ W.T` into the output of every span's own mask, in place.

        Args:
            out, x: contiguous rows of the spans `which` of the batch, `block` for every row of the batch.
            weight: index of W in the layout; the masks list its OFF weights.
            bias: index of the bias in the layout, likewise listed; or a bias that is not maskable; or None.
        """
        assert self._kernel is not None
        at_bias = self._layout.tensors[bias] if isinstance(bias, int) else None
        table, scales = lists.make_table(which, weight, bias if isinstance(bias, int) else None, block)
        values = _find_bias(self._theta, at_bias, bias, out.shape[1])
        first_weight = self._layout.tensors[weight].first_element
        first_bias = at_bias.first_element if at_bias is not None else 0
        fixed = (out.numpy(), x.numpy(), self._theta.numpy(), lists.off, table, scales, values, first_weight)
        if self._pool is None:
            self._kernel(*fixed, first_bias, 0, len(out))
            return
        cuts = np.linspace(0, len(out), self._threads + 1).astype(int).tolist()
        shares = [partial(self._kernel, *fixed, first_bias, *share) for share in pairwise(cuts)]
        others = [self._pool.submit(share) for share in shares[1:]]
        shares[0]()
        for other in others:
            other.result()


def _find_bias(
    theta: Float[Tensor, "n_elements"], at: MaskableTensor | None, bias: int | Tensor | None, n_out: int
) -> Float32[ndarray, "o"]:
    """The root's values of a bias, as `correct` gets it."""
    if at is not None:
        return theta[at.elements].numpy()
    return bias.numpy() if isinstance(bias, Tensor) else np.zeros(n_out, np.float32)


def correct_slowly(
    x: Float[Tensor, "r i"],
    spans: Sequence[Span],
    weight: tuple[int, Float[Tensor, "o i"], int],
    bias: tuple[int, Float[Tensor, "o"], int],
) -> Float[Tensor, "r o"]:
    """What `correct` makes of `x @ W.T`, in the obvious way: a masked copy of weight and bias for every span.

    Args:
        weight, bias: index in the layout, values in theta, first element in theta.
    """
    found = []
    for span in spans:
        masked = []
        for tensor, theta, first in (weight, bias):
            flat = theta.clone().flatten()
            if span.mask is not None:
                flat[span.mask.compact.off_of(tensor).long() - first] = 0
                flat *= float(span.mask.compact.scales[tensor])
            masked.append(flat.view(theta.shape))
        found.append(torch.nn.functional.linear(x[span.start : span.stop], *masked))
    return torch.cat(found)
