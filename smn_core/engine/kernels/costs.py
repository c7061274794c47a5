"""When the kernels go by the list of a layer's OFF weights and when by its bits: what costs less."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelCosts:
    """Of one tile of rows, in nanoseconds of a whole device; only their ratio decides.

    Attributes:
        unpack: of reading and unpacking bits, by weight of the layer.
        entry: of the sparse correction, by OFF weight.
    """

    unpack: float
    entry: float


# Not measured: `python -m benchmarks.gpu --fit` does it where there is a GPU. An OFF weight costs one more column of
# the product, its inputs gathered row by row (taken for four columns); unpacking costs each column about as much again.
CUDA = KernelCosts(unpack=3e-4, entry=0.077)


def list_pays(costs: KernelCosts, n_weights: int, n_off: int) -> bool:
    """Whether a linear layer with so many listed OFF weights goes by the list."""
    return costs.entry * n_off < costs.unpack * n_weights
