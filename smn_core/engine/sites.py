"""Sites: the modules that a mask changes. How to find them, give one of them other weights, and scale its output.

A site is a module that owns maskable parameters or running statistics. `nn.Linear` and `nn.Conv2d` are linear in their
weight. So `1 / alpha` may be applied to their output, behind the product, instead of to every weight:
`f(x; theta * on / alpha) = f(x; theta * on) / alpha`. This need not hold for their subclasses: one that standardises
its weights is not linear in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smn_core.engine.forwards.convolution import FoldedConv2d
from smn_core.engine.forwards.linear import OneDNNLinear, activate, linear
from smn_core.layout import Layout

Forward = Callable[[Tensor], Tensor]
Weights = Mapping[str, Tensor]
"""Tensors by the names of the model."""


@dataclass(eq=False)
class Site:
    """One module that a mask changes.

    Attributes:
        parameters, buffers: from the module's own names for its tensors to the model's names.
        tensors: its maskable parameters, by index in the layout.
        weight, bias: its weight and its bias, likewise; None where it has none, or none that is maskable.
        scalable: whether `1 / alpha` may be applied to its output.
        calls: how often one forward of the model calls it; the rehearsal counts (rehearsal.py).
        out_elements: elements of its output for one image; the rehearsal counts them too.
        original: the module's own forward.
    """

    module: nn.Module
    parameters: dict[str, str]
    buffers: dict[str, str]
    tensors: list[int]
    weight: int | None = None
    bias: int | None = None
    scalable: bool = False
    calls: int = 0
    out_elements: int = 0
    original: Forward = field(init=False)

    def __post_init__(self) -> None:
        self.original = self.module.forward

    def show(self, weights: Weights, state: Weights) -> None:
        """Make the module find these tensors."""
        for own, name in self.parameters.items():
            self.module._parameters[own] = weights[name]  # type: ignore[assignment]
        for own, name in self.buffers.items():
            self.module._buffers[own] = state[name]

    def replace(self, forward: Forward) -> None:
        """Run `forward` wherever the model calls the module."""
        self.module.__dict__["forward"] = forward

    def restore(self) -> None:
        """Run the module's own forward again."""
        self.module.__dict__.pop("forward", None)

    @property
    def is_linear(self) -> bool:
        return self.scalable and isinstance(self.module, nn.Linear)

    def run_scaled(self, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, bias_scale: float) -> Tensor:
        """`f(x; weight) * scale + bias * bias_scale`, for a scalable site."""
        if isinstance(self.module, nn.Linear):
            return self.multiply(x, weight, bias, scale, bias_scale)
        assert isinstance(self.module, nn.Conv2d)
        y = self.module._conv_forward(x, weight, None).mul_(scale)
        return y if bias is None else y.add_(bias.view(-1, 1, 1), alpha=bias_scale)

    def multiply(
        self, x: Float[Tensor, "*r i"], weight: Tensor, bias: Tensor | None, scale: float = 1.0, bias_scale: float = 1.0
    ) -> Float[Tensor, "*r o"]:
        """`x @ weight.T * scale + bias * bias_scale`, and what the layer applies to that: for a linear site."""
        if isinstance(self.module, OneDNNLinear):
            return self.module.run_scaled(x, weight, bias, scale, bias_scale)
        out = x.new_empty(*x.shape[:-1], weight.shape[0])
        multiply(out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1]), weight, bias, scale, bias_scale)
        return out

    def multiply_into(
        self,
        out: Float[Tensor, "r o"],
        x: Float[Tensor, "r i"],
        weight: Tensor,
        bias: Tensor | None,
        scale: float = 1.0,
        bias_scale: float = 1.0,
    ) -> None:
        """The same, into rows of a larger output. oneDNN's operation has no such argument: its output is copied."""
        if isinstance(self.module, OneDNNLinear):
            out.copy_(self.module.run_scaled(x, weight, bias, scale, bias_scale))
        else:
            multiply(out, x, weight, bias, scale, bias_scale)

    def multiply_bare(self, x: Float[Tensor, "r i"], weight: Tensor) -> Float[Tensor, "r o"]:
        """`x @ weight.T` and nothing more; `finish` does what is left."""
        return linear(x, weight) if isinstance(self.module, OneDNNLinear) else x @ weight.t()

    def finish(self, y: Float[Tensor, "r o"]) -> Float[Tensor, "r o"]:
        """What a linear site applies to its products."""
        return activate(y, self.module.activation) if isinstance(self.module, OneDNNLinear) else y


def scale_behind(sites: Iterable[Site], scales: Sequence[float] | None) -> None:
    """Multiply the product with weight t by `scales[t]`, and bias t too, at every call from now on.

    Every call looks the scales up. None ends it: the modules run their own forwards again.
    """
    for site in sites:
        if scales is None or not site.scalable:
            site.restore()
        else:
            site.replace(partial(_run_scaled, site, scales))


def _run_scaled(site: Site, scales: Sequence[float], x: Tensor) -> Tensor:
    assert site.weight is not None
    scale, module = scales[site.weight], site.module
    bias_scale = 1.0 if site.bias is None else scales[site.bias]
    if scale == 1 and bias_scale == 1:
        return site.original(x)
    return site.run_scaled(x, module.weight, module.bias, scale, bias_scale)  # type: ignore[arg-type]


def multiply(
    out: Float[Tensor, "r o"],
    x: Float[Tensor, "r i"],
    weight: Tensor,
    bias: Tensor | None,
    scale: float = 1.0,
    bias_scale: float = 1.0,
) -> None:
    """`out = x @ weight.T * scale + bias * bias_scale`. The scales cost nothing inside the product."""
    if bias is None:
        torch.addmm(out, x, weight.t(), beta=0, alpha=scale, out=out)
    else:
        torch.addmm(bias, x, weight.t(), beta=bias_scale, alpha=scale, out=out)


def sites_of(model: nn.Module, layout: Layout) -> list[Site]:
    """The sites of a model, in its order. A tensor that modules share is a tensor of each of them."""
    names = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    index = {tensor.name: i for i, tensor in enumerate(layout)}
    found = []
    for module in model.modules():
        parameters = _owned(module._parameters, names, index)
        buffers = _owned(module._buffers, names, layout.buffers)
        if parameters or buffers:
            weight, bias = (index.get(parameters.get(own, "")) for own in ("weight", "bias"))
            scalable = weight is not None and _is_plain(module)
            tensors = [index[name] for name in parameters.values()]
            found.append(Site(module, parameters, buffers, tensors, weight, bias, scalable))
    return found


def _owned(table: Mapping[str, Tensor | None], names: Mapping[int, str], wanted: Iterable[str]) -> dict[str, str]:
    return {own: names[id(t)] for own, t in table.items() if t is not None and names[id(t)] in wanted}


def _is_plain(module: nn.Module) -> bool:
    """Whether a module computes what `nn.Linear` or `nn.Conv2d` does: its forward is theirs, and nobody wrapped it.

    Or it is a form of theirs (forwards/).
    """
    kind = type(module)
    plain = kind.forward in (nn.Linear.forward, OneDNNLinear.forward) or (
        kind.forward in (nn.Conv2d.forward, FoldedConv2d.forward)
        and getattr(kind, "_conv_forward", None) is nn.Conv2d._conv_forward
    )
    return plain and "forward" not in module.__dict__
