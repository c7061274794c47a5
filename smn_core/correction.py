"""The shared base: `y[i] = (x[i] @ W.T - x[i] @ (W * off[i]).T) / alpha[i] + b[i]`, one product for many masks.

The matrix `W * off[i]` is sparse: a few hundred weights of a layer. It is made when a batch first needs it and kept,
least recently used out, in as much memory as one slot takes.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smn_core.bits import unpack
from smn_core.layout import Layout
from smn_core.resident import Resident

# What torch can multiply a sparse matrix with on the CPU without copying the dense one first.
AVAILABLE = torch.backends.mkl.is_available()


@dataclass(eq=False)
class Correction:
    """What one mask changes in linear layers: sparse matrices of its OFF weights, dense biases; by tensor."""

    matrices: dict[int, Tensor] = field(default_factory=dict)
    biases: dict[int, Tensor] = field(default_factory=dict)
    nbytes: int = 0


class Corrections:
    """The corrections of the masks used last. Owned by one thread."""

    def __init__(self, theta: Float[Tensor, "n_elements"], layout: Layout, budget_bytes: int) -> None:
        self._theta, self._layout, self._budget = theta, layout, budget_bytes
        self._of: OrderedDict[str, Correction] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Safe on any thread."""
        return sum(made.nbytes for made in list(self._of.values()))

    def drop(self, digest: str) -> None:
        self._of.pop(digest, None)

    def of(self, digest: str) -> Correction:
        """The correction of a mask, empty at first; the least recently used ones make room."""
        found = self._of.setdefault(digest, Correction())
        self._of.move_to_end(digest)
        return found

    def tidy(self) -> None:
        """Keep within the budget; between batches, so that nothing in use goes."""
        total = self.nbytes
        while total > self._budget and self._of:
            _, made = self._of.popitem(last=False)
            total -= made.nbytes

    def matrix(self, made: Correction, bits: Resident, tensor: int) -> Float[Tensor, "o i"]:
        """`W * off` of one tensor that lists its OFF weights, in compressed rows."""
        if tensor not in made.matrices:
            made.matrices[tensor] = self._matrix(bits, tensor)
            made.nbytes += 8 * len(bits.off_of(tensor)) + 4 * (self._layout.tensors[tensor].shape[0] + 1)
        return made.matrices[tensor]

    def bias(self, made: Correction, bits: Resident, tensor: int) -> Float[Tensor, "o"]:
        """`b * on / alpha` of one tensor of any form."""
        if tensor not in made.biases:
            at = self._layout.tensors[tensor]
            scale, packed = float(bits.scales[tensor]), bits.packed.get(tensor)
            bias = self._theta[at.elements] * scale
            if packed is not None:
                on = torch.from_numpy(unpack(packed.cpu().numpy(), at.n_weights)).to(bias)
                bias *= on
            else:
                bias[bits.off_of(tensor).long() - at.first_element] = 0.0
            made.biases[tensor] = bias
            made.nbytes += bias.nbytes
        return made.biases[tensor]

    def _matrix(self, bits: Resident, tensor: int) -> Float[Tensor, "o i"]:
        at = self._layout.tensors[tensor]
        off = bits.off_of(tensor)
        rows, columns = np.divmod(off.numpy() - at.first_element, at.shape[1])
        starts = np.zeros(at.shape[0] + 1, np.int32)
        np.cumsum(np.bincount(rows, minlength=at.shape[0]), out=starts[1:])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                torch.from_numpy(starts),
                torch.from_numpy(columns.astype(np.int32)),
                self._theta[off.long()],
                size=at.shape,
                check_invariants=False,
            )


def subtract(out: Float[Tensor, "r o"], x: Float[Tensor, "r i"], matrix: Float[Tensor, "o i"], scale: float) -> None:
    """`out = (out - x @ matrix.T) * scale`, in place; both row-major, so their transposes need no copy."""
    torch.addmm(out.t(), matrix, x.t(), beta=scale, alpha=-scale, out=out.t())
