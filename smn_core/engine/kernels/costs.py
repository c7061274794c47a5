"""Whether the kernels read a layer's mask from its list of OFF weights or from its packed bits: what costs less."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelCosts:
    """Costs of one tile of rows, in nanoseconds of a whole device; only their ratio decides.

    Attributes:
        unpack: to read and unpack the bits, by weight of the layer.
        entry: to correct by the list, by OFF weight.
    """

    unpack: float
    entry: float


# Not measured: `python -m benchmarks.gpu --fit` does it where there is a GPU. An OFF weight costs one more column of
# the product, its inputs gathered row by row (taken for four columns); unpacking costs each column about as much again.
CUDA = KernelCosts(unpack=3e-4, entry=0.077)


def list_pays(costs: KernelCosts, n_weights: int, n_off: int) -> bool:
    """Whether a linear layer with so many listed OFF weights is read from the list."""
    return costs.entry * n_off < costs.unpack * n_weights
