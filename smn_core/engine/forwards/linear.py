"""Linear layers through oneDNN, with the activation behind them in the same pass.

    y = activation(x @ weight.T * scale + bias * bias_scale)

torch hands float32 products to MKL, which uses half of the vectors of some processors. oneDNN, which torch carries too,
takes weights as they lie in memory: they may change between two calls. There are no gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

# From our names of activations to what the operation calls them.
ACTIVATIONS = {"none": ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "")}


def has_onednn() -> bool:
    """Whether this build of torch has the operation."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(
    x: Float[Tensor, "*r i"], weight: Float[Tensor, "o i"], bias: Tensor | None = None, activation: str = "none"
) -> Float[Tensor, "*r o"]:
    """`activation(x @ weight.T + bias)` in one call of oneDNN, on the CPU."""
    if x.numel() == 0:
        return linear_slowly(x, weight, bias, activation)
    name, algorithm = ACTIVATIONS[activation]
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)


def linear_slowly(
    x: Float[Tensor, "*r i"], weight: Float[Tensor, "o i"], bias: Tensor | None = None, activation: str = "none"
) -> Float[Tensor, "*r o"]:
    """What `linear` must agree with: torch's own operations, one after the other."""
    return activate(functional.linear(x, weight, bias), activation)


def activate(y: Tensor, activation: str) -> Tensor:
    """`activation(y)`."""
    if activation == "none":
        return y
    if activation == "relu":
        return functional.relu(y)
    return functional.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")


class OneDNNLinear(nn.Linear):
    """What an `nn.Linear` becomes: its parameters and its name stay, `activation` is applied to what it returns."""

    activation: str

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.activation)

    def run_scaled(self, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, bias_scale: float) -> Tensor:
        """The layer with other weights. oneDNN has no factor: the narrower of input and output is scaled."""
        own_bias = bias if bias is None or bias_scale == 1 else bias * bias_scale
        if scale == 1:
            return linear(x, weight, own_bias, self.activation)
        if x.dtype != torch.float32:  # scaling would round once more; torch's product scales the sum
            return activate(_scale_inside(x, weight, bias, scale, bias_scale), self.activation)
        if self.activation != "none" or weight.shape[0] >= weight.shape[1]:
            return linear(x * scale, weight, own_bias, self.activation)
        y = linear(x, weight)
        return y.mul_(scale) if own_bias is None else torch.add(own_bias, y, alpha=scale, out=y)


def _scale_inside(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, bias_scale: float) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    start = x.new_zeros(()) if bias is None else bias
    y = torch.addmm(start, rows, weight.t(), beta=0 if bias is None else bias_scale, alpha=scale)
    return y.view(*x.shape[:-1], weight.shape[0])
